//! How the work on a tensor is divided among cores and vectors.
//!
//! Element by element there is one loop, [`map`]; over many elements there is another, [`sums`].
//! Both go through the tensor in the order of memory, by *runs* of values that have their channel in
//! common, or, where these are short, by *rows* whose values have a channel each.
//!
//! The division depends on the shape alone (and on whether there is a mask), and every sum has a
//! fixed number of accumulators. So results do not depend on the number of threads or on the width of
//! the processor's vectors: the compiler makes vectors of these loops, and never reorders a sum nor
//! fuses a product with it. It does so for every processor that [`pulp`] tells apart at run time:
//! all that runs in [`pulp::Arch::dispatch`] must be inlined, hence the attributes.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::Element;
use crate::View;

/// Values of an output that are computed at a time.
const CHUNK: usize = 1024;
/// Values that are summed at a time, at most: they stay in a core's cache for a second pass.
const BLOCK: usize = 1 << 16;
/// Values of neighbouring runs that are summed side by side, so that memory is read in order.
const NEIGHBOURS: usize = 4096;
/// Shorter runs are taken as columns of a row.
const SHORT: usize = 16;
/// Columns of a row: narrower ones are joined, wider ones are summed in parts.
const COLUMNS: Range<usize> = 256..1024;
/// Accumulators of a sum over a run.
pub(super) const LANES: usize = 16;
/// Smaller tensors are left to one thread: waking others takes longer.
const SMALL: usize = 1 << 15;

/// A tensor's walk.
pub(super) struct Walk<'a> {
    view: View,
    /// Whether runs are short.
    rows: bool,
    /// Values of a run, or of a row.
    unit: usize,
    /// Which positions count; without it all do. A position is a place in the batch and its spatial
    /// dimensions, which all channels share, counted in the order of memory.
    valid: Option<&'a [bool]>,
}

/// Neighbouring values: of one run, or of one row.
struct Segment {
    /// Their flat indices.
    range: Range<usize>,
    /// The channel of the run, or the first column.
    first: usize,
    /// Whether they count.
    valid: bool,
}

/// Some channels of a part of a batch: `steps` times `run` values together, or as many for each
/// channel in turn.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) channels: Range<usize>,
    /// The flat index of the first value.
    start: usize,
    /// From one step to the next.
    step: usize,
    steps: usize,
    run: usize,
    /// The position of the first value.
    position: usize,
}

/// A number for each channel, in a loop over values: of a run, which all have the same, or of a row.
pub(super) trait PerChannel: Copy {
    /// That of the first few values.
    fn first(self, count: usize) -> Self;
    /// That of a value.
    fn at(self, index: usize) -> f64;
}

impl PerChannel for f64 {
    #[inline(always)]
    fn first(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    fn at(self, _: usize) -> f64 {
        self
    }
}

impl PerChannel for &[f64] {
    #[inline(always)]
    fn first(self, count: usize) -> Self {
        &self[..count]
    }

    #[inline(always)]
    fn at(self, index: usize) -> f64 {
        self[index]
    }
}

/// K numbers for each channel.
pub(super) struct Table<const K: usize>([Vec<f64>; K]);

impl<const K: usize> Table<K> {
    pub(super) fn new(channels: usize, numbers: impl Fn(usize) -> [f64; K]) -> Self {
        let mut columns = [const { Vec::new() }; K];
        for channel in 0..channels {
            for (column, number) in columns.iter_mut().zip(numbers(channel)) {
                column.push(number);
            }
        }
        Self(columns)
    }

    #[inline(always)]
    pub(super) fn slices(&self, range: Range<usize>) -> [&[f64]; K] {
        self.0.each_ref().map(|column| &column[range.clone()])
    }
}

/// What a formula is applied to. All have the same length.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a, X, T> {
    pub(super) x: &'a [X],
    /// The gradient with respect to the output. Anything where the formula has none.
    pub(super) dy: &'a [T],
    /// Anything where there is none.
    pub(super) residual: &'a [X],
}

impl<X, T> Operands<'_, X, T> {
    #[inline(always)]
    pub(super) fn at(&self, range: Range<usize>) -> Self {
        Self {
            x: &self.x[range.clone()],
            dy: &self.dy[range.clone()],
            residual: &self.residual[range],
        }
    }
}

/// What is computed of each value alone, with K numbers for each channel.
pub(super) trait Formula<X, T, const K: usize>: Copy + Sync {
    /// Computes it for neighbouring values, which count or do not.
    fn apply<P: PerChannel>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; K],
        out: &mut [T],
    );
}

/// What is summed: A terms of each value, with K numbers for each channel.
pub(super) trait Terms<const K: usize, const A: usize>: Copy + Sync {
    /// Adds the terms of neighbouring values of one channel, in any accumulators.
    fn add_run(
        self,
        range: Range<usize>,
        valid: bool,
        numbers: [f64; K],
        sums: &mut [[f64; LANES]; A],
    );

    /// Adds the terms of neighbouring values, each to its own sum.
    fn add_row(
        self,
        range: Range<usize>,
        valid: bool,
        numbers: [&[f64]; K],
        sums: &mut [Vec<f64>; A],
    );
}

impl<'a> Walk<'a> {
    /// The mask has a flag for each position.
    pub(super) fn new(view: View, valid: Option<&'a [bool]>) -> Self {
        // The values of a row count together, or not: with a mask it has one position.
        let rows = match valid {
            Some(_) => view.inner == 1,
            None => view.inner < SHORT,
        };
        let mut unit = view.inner;
        if rows {
            unit *= view.channels;
            if valid.is_none() && unit > 0 {
                unit *= (COLUMNS.start / unit).clamp(1, view.outer.max(1));
            }
        }
        Self {
            view,
            rows,
            unit,
            valid,
        }
    }

    fn len(&self) -> usize {
        self.view.outer * self.view.channels * self.view.inner
    }

    /// The numbers for each channel, or for each column.
    fn spread<const K: usize>(&self, table: Table<K>) -> Table<K> {
        if !self.rows {
            return table;
        }
        let inner = self.view.inner;
        Table(
            table
                .0
                .map(|numbers| spread(&numbers, inner, self.unit).into_owned()),
        )
    }

    /// Some values of the tensor in segments.
    #[inline(always)]
    fn segments(&self, range: Range<usize>) -> Segments<'_> {
        let View { channels, .. } = self.view;
        // An empty tensor has no runs.
        let number = range.start / self.unit.max(1);
        let (outer, channel) = match self.rows {
            true => (number, 0),
            false => (number / channels, number % channels),
        };
        Segments {
            walk: self,
            offset: range.start - number * self.unit,
            range,
            outer,
            channel,
        }
    }

    /// From which position on, among some that follow one another, all are like the first.
    #[inline(always)]
    fn alike(&self, positions: Range<usize>) -> (usize, bool) {
        let Some(flags) = self.valid else {
            return (positions.len(), true);
        };
        let flags = &flags[positions];
        let valid = flags[0];
        let others = flags.iter().position(|&flag| flag != valid);
        (others.unwrap_or(flags.len()), valid)
    }

    /// The parts in which the tensor is summed, in the order in which they are added.
    fn blocks(&self) -> Vec<Block> {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        let mut blocks = Vec::new();
        if self.len() == 0 {
            return blocks;
        }
        if self.rows {
            let row = channels * inner;
            let joined = self.unit / row;
            // Wide rows in parts, of whole channels.
            let width = (COLUMNS.end / inner).max(1);
            for part in even(0..channels, width) {
                let run = match joined {
                    1 => part.len() * inner,
                    _ => self.unit,
                };
                let block = |rows: Range<usize>, run: usize| Block {
                    channels: part.clone(),
                    start: rows.start * row + part.start * inner,
                    step: run.max(row),
                    steps: rows.len() * row / run.max(row),
                    run,
                    position: rows.start,
                };
                let whole = outer / joined;
                for rows in even(0..whole, (BLOCK / run).max(1)) {
                    blocks.push(block(rows.start * joined..rows.end * joined, run));
                }
                if whole * joined < outer {
                    blocks.push(block(whole * joined..outer, row));
                }
            }
            return blocks;
        }
        for part in even(0..channels, (NEIGHBOURS / inner).max(1)) {
            for run in even(0..inner, BLOCK) {
                for outers in even(0..outer, (BLOCK / (part.len() * run.len())).max(1)) {
                    blocks.push(Block {
                        channels: part.clone(),
                        start: (outers.start * channels + part.start) * inner + run.start,
                        step: channels * inner,
                        steps: outers.len(),
                        run: run.len(),
                        position: outers.start * inner + run.start,
                    });
                }
            }
        }
        blocks
    }

    /// How many values of each channel a block has that count.
    #[inline(always)]
    pub(super) fn count(&self, block: &Block) -> usize {
        let inner = self.view.inner;
        let Some(flags) = self.valid else {
            return match self.rows {
                true => block.steps * block.run / block.channels.len(),
                false => block.steps * block.run,
            };
        };
        let run = if self.rows { 1 } else { block.run };
        let runs = (0..block.steps).map(|step| {
            let first = block.position + step * inner;
            &flags[first..first + run]
        });
        runs.map(|flags| flags.iter().filter(|&&flag| flag).count())
            .sum()
    }

    /// What a kernel makes of each block, in the order of the blocks.
    pub(super) fn each_block<K>(&self, kernel: impl Fn(Block) -> K + Sync) -> Vec<K::Output>
    where
        K: pulp::NullaryFnOnce<Output: Send>,
    {
        let arch = pulp::Arch::new();
        let run = |block| arch.dispatch(kernel(block));
        let blocks = self.blocks();
        match self.len() < SMALL {
            true => blocks.into_iter().map(run).collect(),
            false => blocks.into_par_iter().map(run).collect(),
        }
    }

    /// The sums of the terms of a block, for each of its channels; the numbers are those of its
    /// channels.
    #[inline(always)]
    pub(super) fn sums<const K: usize, const A: usize>(
        &self,
        block: &Block,
        terms: impl Terms<K, A>,
        numbers: [&[f64]; K],
    ) -> [Vec<f64>; A] {
        let (channels, inner) = (block.channels.len(), self.view.inner);
        if self.rows {
            let numbers = numbers.map(|numbers| spread(numbers, inner, block.run));
            let numbers = numbers.each_ref().map(|numbers| &**numbers);
            let mut sums = [(); A].map(|()| vec![0.0; block.run]);
            for step in 0..block.steps {
                let start = block.start + step * block.step;
                let valid = self.valid.is_none_or(|flags| flags[block.position + step]);
                terms.add_row(start..start + block.run, valid, numbers, &mut sums);
            }
            return sums.map(|sums| gather(sums, inner, channels));
        }
        let mut sums = vec![[[0.0; LANES]; A]; channels];
        for step in 0..block.steps {
            for (channel, sums) in sums.iter_mut().enumerate() {
                let numbers = numbers.map(|numbers| numbers[channel]);
                let start = block.start + step * block.step + channel * inner;
                let position = block.position + step * inner;
                let mut done = 0;
                while done < block.run {
                    let (count, valid) = self.alike(position + done..position + block.run);
                    let range = start + done..start + done + count;
                    terms.add_run(range, valid, numbers, sums);
                    done += count;
                }
            }
        }
        let mut totals = [(); A].map(|()| Vec::with_capacity(channels));
        for sums in sums {
            for (totals, sums) in totals.iter_mut().zip(sums) {
                totals.push(sums.iter().sum());
            }
        }
        totals
    }

    /// The values of a new tensor by a formula.
    pub(super) fn map<X: Element, T: Element, const K: usize>(
        &self,
        formula: impl Formula<X, T, K>,
        operands: Operands<'_, X, T>,
        table: Table<K>,
    ) -> Vec<T> {
        let table = &self.spread(table);
        filled(self.len(), |start, out| {
            let operands = operands.at(start..start + out.len());
            pulp::Arch::new().dispatch(Chunk {
                walk: self,
                formula,
                operands,
                table,
                start,
                out,
            });
        })
    }

    /// The formula's values, written over the one tensor that is not given for itself.
    pub(super) fn map_in_place<T: Element, const K: usize>(
        &self,
        formula: impl Formula<T, T, K>,
        values: &mut [T],
        x: Option<&[T]>,
        residual: Option<&[T]>,
        table: Table<K>,
    ) {
        let table = &self.spread(table);
        let change = |(number, values): (usize, &mut [T])| {
            let mut out = [T::from_f64(0.0); CHUNK];
            let out = &mut out[..values.len()];
            let start = number * CHUNK;
            let all = start..start + values.len();
            pulp::Arch::new().dispatch(Chunk {
                walk: self,
                formula,
                operands: Operands {
                    x: x.map_or(values, |x| &x[all.clone()]),
                    dy: values,
                    residual: residual.map_or(values, |residual| &residual[all]),
                },
                table,
                start,
                out,
            });
            values.copy_from_slice(out);
        };
        match values.len() < SMALL {
            true => values.chunks_mut(CHUNK).enumerate().for_each(change),
            false => values.par_chunks_mut(CHUNK).enumerate().for_each(change),
        }
    }
}

/// A new vector, of which `fill` is given the first index and the place of some values at a time.
/// No value is written twice to memory.
pub(super) fn filled<T: Element>(len: usize, fill: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let chunk = |number: usize| {
        let mut out = [T::from_f64(0.0); CHUNK];
        fill(number * CHUNK, &mut out);
        out
    };
    let whole = len / CHUNK;
    // The last one is not whole.
    let mut chunks = Vec::with_capacity(whole + 1);
    match len < SMALL {
        true => chunks.extend((0..whole).map(chunk)),
        false => (0..whole)
            .into_par_iter()
            .map(chunk)
            .collect_into_vec(&mut chunks),
    }
    let mut values = chunks.into_flattened();
    let mut rest = [T::from_f64(0.0); CHUNK];
    let rest = &mut rest[..len % CHUNK];
    fill(whole * CHUNK, rest);
    values.extend_from_slice(rest);
    values
}

/// A range in parts of nearly the same size, no larger than `most`.
fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (start, len) = (range.start, range.len());
    let parts = len.div_ceil(most);
    (0..parts).map(move |part| start + part * len / parts..start + (part + 1) * len / parts)
}

/// The numbers of channels as those of columns.
#[inline(always)]
fn spread(numbers: &[f64], inner: usize, columns: usize) -> Cow<'_, [f64]> {
    if columns == numbers.len() {
        return Cow::Borrowed(numbers);
    }
    let mut spread = Vec::with_capacity(columns);
    while spread.len() < columns {
        for &number in numbers {
            for _ in 0..inner {
                spread.push(number);
            }
        }
    }
    Cow::Owned(spread)
}

/// The sums of columns as those of channels.
#[inline(always)]
fn gather(columns: Vec<f64>, inner: usize, channels: usize) -> Vec<f64> {
    if columns.len() == channels {
        return columns;
    }
    let mut sums = vec![0.0; channels];
    for row in columns.chunks_exact(channels * inner) {
        for (sum, columns) in sums.iter_mut().zip(row.chunks_exact(inner)) {
            *sum += columns.iter().sum::<f64>();
        }
    }
    sums
}

struct Segments<'a> {
    walk: &'a Walk<'a>,
    /// What is left.
    range: Range<usize>,
    outer: usize,
    /// 0 for rows.
    channel: usize,
    /// Within the run or row.
    offset: usize,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    #[inline(always)]
    fn next(&mut self) -> Option<Segment> {
        if self.range.is_empty() {
            return None;
        }
        let Walk {
            view, rows, unit, ..
        } = *self.walk;
        let mut count = self.range.len().min(unit - self.offset);
        let first = if rows { self.offset } else { self.channel };
        let valid = if rows {
            self.walk.valid.is_none_or(|flags| flags[self.outer])
        } else {
            let position = self.outer * unit + self.offset;
            let (alike, valid) = self.walk.alike(position..position + count);
            count = alike;
            valid
        };
        let start = self.range.start;
        self.range.start += count;
        self.offset += count;
        if self.offset == unit {
            self.offset = 0;
            self.channel += 1;
            if rows || self.channel == view.channels {
                self.channel = 0;
                self.outer += 1;
            }
        }
        Some(Segment {
            range: start..start + count,
            first,
            valid,
        })
    }
}

/// A formula for some values.
struct Chunk<'a, F, X, T, const K: usize> {
    walk: &'a Walk<'a>,
    formula: F,
    /// Of these values alone.
    operands: Operands<'a, X, T>,
    /// For each channel, or for each column.
    table: &'a Table<K>,
    /// The flat index of the first value.
    start: usize,
    out: &'a mut [T],
}

impl<F: Formula<X, T, K>, X: Element, T: Element, const K: usize> pulp::NullaryFnOnce
    for Chunk<'_, F, X, T, K>
{
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let end = self.start + self.out.len();
        for segment in self.walk.segments(self.start..end) {
            let Segment {
                range,
                first,
                valid,
            } = segment;
            let count = range.len();
            let range = range.start - self.start..range.end - self.start;
            let operands = self.operands.at(range.clone());
            let out = &mut self.out[range];
            if self.walk.rows {
                let numbers = self.table.slices(first..first + count);
                self.formula.apply(operands, valid, numbers, out);
            } else {
                let numbers = self.table.0.each_ref().map(|column| column[first]);
                self.formula.apply(operands, valid, numbers, out);
            }
        }
    }
}
