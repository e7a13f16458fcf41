//! How the work on a tensor is divided among cores and vectors.
//!
//! Element by element there is one loop, that of [`Walk::map`]; over many elements there is another,
//! that of [`Walk::sums`].
//! Both go through the tensor in the order of memory, by *runs* of values that have their channel in
//! common, or, where these are short, by *rows* whose values have a channel each.
//!
//! The division depends on the shape alone (and on whether there is a mask), and every sum has a
//! fixed number of accumulators. So results do not depend on the number of threads or on the width of
//! the processor's vectors: the compiler makes vectors of these loops, and never reorders a sum nor
//! fuses a product with it. It does so for every processor that [`pulp`] tells apart at run time:
//! all that runs in [`pulp::Arch::dispatch`] must be inlined, hence the attributes.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::ops::Range;

use rayon::iter::plumbing::Folder;
use rayon::prelude::*;

use super::Element;
use super::collect::{self, ITEM, Source, Strips};
use crate::View;

/// Values that are computed together where each has numbers of its own: several of the processor's
/// vectors.
const GROUP: usize = 8;
/// Values that are computed before they are written over others.
const BATCH: usize = 512;
/// Values that a thread writes over at a time.
const CHUNK: usize = 16 * BATCH;
/// Values that are summed at a time, at most: they stay in a core's cache for a second pass.
const BLOCK: usize = 1 << 16;
/// Values of neighbouring runs that are summed side by side, so that memory is read in order.
const NEIGHBOURS: usize = 4096;
/// Values of a group of channels, at most, for it to stay in a core's caches with another tensor of
/// the same size.
const KEPT: usize = 1 << 18;
/// Shorter runs are taken as columns of a row.
const SHORT: usize = 16;
/// Columns of a row: narrower ones are joined, wider ones are summed in parts.
const COLUMNS: Range<usize> = 256..1024;
/// Rows that are summed at a time: each sum is then read and written once for all.
const ROWS: usize = 4;
/// Values from one row to the next, at least, for that to pay: nearer rows share pages of memory, and
/// the processor, which then sees no order in what is read, fetches nothing ahead.
const APART: usize = 1024;
/// Accumulators of a sum over a run.
const LANES: usize = 8;
/// Smaller tensors are left to one thread: waking others takes longer.
pub(super) const SMALL: usize = 1 << 15;

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
    count: usize,
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
    /// Whether all have the same: it then leaves more of the processor's registers for values.
    const SHARED: bool;
    /// Those of some of the values.
    fn part(self, range: Range<usize>) -> Self;
    /// That of a value.
    fn at(self, index: usize) -> f64;
}

impl PerChannel for f64 {
    const SHARED: bool = true;

    #[inline(always)]
    fn part(self, _: Range<usize>) -> Self {
        self
    }

    #[inline(always)]
    fn at(self, _: usize) -> f64 {
        self
    }
}

impl PerChannel for &[f64] {
    const SHARED: bool = false;

    #[inline(always)]
    fn part(self, range: Range<usize>) -> Self {
        &self[range]
    }

    #[inline(always)]
    fn at(self, index: usize) -> f64 {
        self[index]
    }
}

/// The numbers of some of the values: `map` would be compiled anew for each caller.
#[inline(always)]
pub(super) fn part<P: PerChannel, const K: usize>(
    mut numbers: [P; K],
    range: Range<usize>,
) -> [P; K] {
    for number in &mut numbers {
        *number = number.part(range.clone());
    }
    numbers
}

/// The number of a run, and that of the next.
#[derive(Clone, Copy)]
struct Both {
    head: f64,
    tail: f64,
    /// From which value on the second is meant.
    split: usize,
}

impl PerChannel for Both {
    const SHARED: bool = false;

    #[inline(always)]
    fn part(self, range: Range<usize>) -> Self {
        Self {
            split: self.split.saturating_sub(range.start),
            ..self
        }
    }

    #[inline(always)]
    fn at(self, index: usize) -> f64 {
        if index < self.split {
            self.head
        } else {
            self.tail
        }
    }
}

/// K numbers for each of some channels.
pub(super) struct Table<const K: usize> {
    first: usize,
    columns: [Vec<f64>; K],
}

impl<const K: usize> Table<K> {
    pub(super) fn new(channels: Range<usize>, numbers: impl Fn(usize) -> [f64; K]) -> Self {
        let first = channels.start;
        let mut columns = [const { Vec::new() }; K];
        for channel in channels {
            for (column, number) in columns.iter_mut().zip(numbers(channel)) {
                column.push(number);
            }
        }
        Self { first, columns }
    }

    #[inline(always)]
    fn at(&self, index: usize) -> [f64; K] {
        self.columns
            .each_ref()
            .map(|column| column[index - self.first])
    }

    #[inline(always)]
    pub(super) fn slices(&self, range: Range<usize>) -> [&[f64]; K] {
        let range = range.start - self.first..range.end - self.first;
        self.columns.each_ref().map(|column| &column[range.clone()])
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
pub(super) trait Formula<X, T: Element, const K: usize>: Copy + Sync {
    /// Computes it for some neighbouring values, which count or do not.
    fn values<P: PerChannel, const L: usize>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; K],
        out: &mut [T; L],
    );

    /// Computes it for an item of neighbouring values.
    #[inline(always)]
    fn item<P: PerChannel>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; K],
    ) -> [T; ITEM] {
        let mut item = [T::from_f64(0.0); ITEM];
        if P::SHARED {
            self.values(operands.at(0..ITEM), valid, numbers, &mut item);
            return item;
        }
        let (groups, _) = item.as_chunks_mut::<GROUP>();
        for (number, group) in groups.iter_mut().enumerate() {
            let range = number * GROUP..(number + 1) * GROUP;
            let numbers = part(numbers, range.clone());
            self.values(operands.at(range), valid, numbers, group);
        }
        item
    }

    /// Computes it for neighbouring values, in groups of a size that the compiler knows. The last
    /// may have values in common with the one before.
    #[inline(always)]
    fn apply<P: PerChannel>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; K],
        out: &mut [T],
    ) {
        let count = out.len();
        let mut done = 0;
        while done < count {
            if count < GROUP {
                let numbers = part(numbers, done..done + 1);
                let (operands, out) = (operands.at(done..done + 1), &mut out[done..done + 1]);
                if let Some(out) = out.first_chunk_mut::<1>() {
                    self.values(operands, valid, numbers, out);
                }
                done += 1;
            } else {
                let first = done.min(count - GROUP);
                let group = first..first + GROUP;
                let numbers = part(numbers, group.clone());
                let operands = operands.at(group.clone());
                if let Some(out) = out[group].first_chunk_mut::<GROUP>() {
                    self.values(operands, valid, numbers, out);
                }
                done = first + GROUP;
            }
        }
    }
}

/// What is summed: A terms of each value, with K numbers for each channel.
pub(super) trait Terms<const K: usize, const A: usize>: Copy + Sync {
    /// Adds the terms of neighbouring values, which count or do not, each to a sum of its own.
    fn add<P: PerChannel, const L: usize>(
        self,
        start: usize,
        valid: bool,
        numbers: [P; K],
        sums: &mut [[f64; L]; A],
    );

    /// Adds the terms of neighbouring values of one channel, in any accumulators.
    #[inline(always)]
    fn add_run(
        self,
        run: Range<usize>,
        valid: bool,
        numbers: [f64; K],
        sums: &mut [[f64; LANES]; A],
    ) {
        let mut found = *sums;
        let whole = run.start..run.end - run.len() % LANES;
        for start in whole.clone().step_by(LANES) {
            self.add(start, valid, numbers, &mut found);
        }
        for (lane, start) in (whole.end..run.end).enumerate() {
            let mut one = found.map(|sums| [sums[lane]]);
            self.add(start, valid, numbers, &mut one);
            for (found, [one]) in found.iter_mut().zip(one) {
                found[lane] = one;
            }
        }
        *sums = found;
    }

    /// Adds the terms of the values of rows, one row after the other, each to the sum of its column.
    #[inline(always)]
    fn add_rows<const R: usize>(
        self,
        rows: [usize; R],
        valid: bool,
        numbers: [&[f64]; K],
        sums: &mut [Vec<f64>; A],
    ) {
        let columns = sums.first().map_or(0, Vec::len);
        let whole = columns - columns % GROUP;
        for column in (0..whole).step_by(GROUP) {
            self.add_columns::<R, GROUP>(column, rows, valid, numbers, sums);
        }
        for column in whole..columns {
            self.add_columns::<R, 1>(column, rows, valid, numbers, sums);
        }
    }

    /// As many columns of that as there are from one on.
    #[inline(always)]
    fn add_columns<const R: usize, const L: usize>(
        self,
        column: usize,
        rows: [usize; R],
        valid: bool,
        numbers: [&[f64]; K],
        sums: &mut [Vec<f64>; A],
    ) {
        let columns = column..column + L;
        let numbers = part(numbers, columns.clone());
        let mut found = [[0.0; L]; A];
        for (found, sums) in found.iter_mut().zip(&*sums) {
            found.copy_from_slice(&sums[columns.clone()]);
        }
        for start in rows {
            self.add(start + column, valid, numbers, &mut found);
        }
        for (found, sums) in found.iter().zip(sums) {
            sums[columns.clone()].copy_from_slice(found);
        }
    }
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
                let joined = (COLUMNS.start / unit).clamp(1, view.outer.max(1));
                unit *= 1 << joined.ilog2();
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

    /// The numbers for each channel, or for each column: then the first follow the last once more, for
    /// items that belong to two rows.
    fn spread<const K: usize>(&self, table: Table<K>) -> Table<K> {
        if !self.rows || self.len() == 0 {
            return table;
        }
        let (inner, columns) = (self.view.inner, self.unit + ITEM);
        Table {
            columns: table
                .columns
                .map(|numbers| spread(&numbers, inner, columns).into_owned()),
            ..table
        }
    }

    /// The segments from a flat index on.
    #[inline(always)]
    fn segments(&self, index: usize) -> Segments<'_> {
        // An empty tensor has no runs.
        let number = index / self.unit.max(1);
        let (outer, channel) = match self.rows {
            true => (number, 0),
            false => (number / self.view.channels, number % self.view.channels),
        };
        Segments {
            walk: self,
            offset: index - number * self.unit,
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

    /// The parts in which some channels are summed, in the order in which they are added: the first in
    /// memory last, so that the pass over memory that comes next finds them in the caches.
    fn blocks(&self, channels: Range<usize>) -> Vec<Block> {
        let mut blocks = Vec::new();
        if self.len() == 0 {
            return blocks;
        }
        if self.rows {
            self.row_blocks(channels, &mut blocks);
        } else {
            self.run_blocks(channels, &mut blocks);
        }
        blocks.sort_by_key(|block| Reverse(block.start));
        blocks
    }

    fn row_blocks(&self, summed: Range<usize>, blocks: &mut Vec<Block>) {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        let row = channels * inner;
        let joined = self.unit / row;
        // Wide rows in parts, of whole channels.
        let width = (COLUMNS.end / inner).max(1);
        for part in parts(summed, width) {
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
            for rows in parts(0..whole, (BLOCK / run).max(1)) {
                blocks.push(block(rows.start * joined..rows.end * joined, run));
            }
            if whole * joined < outer {
                blocks.push(block(whole * joined..outer, row));
            }
        }
    }

    fn run_blocks(&self, summed: Range<usize>, blocks: &mut Vec<Block>) {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        for part in parts(summed, self.neighbours()) {
            for run in parts(0..inner, BLOCK) {
                for outers in parts(0..outer, (BLOCK / (part.len() * run.len())).max(1)) {
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

    /// How many channels of neighbouring runs are summed side by side, at most.
    fn neighbours(&self) -> usize {
        (NEIGHBOURS / self.view.inner).max(1)
    }

    /// The channels, in groups of which each is best summed and then mapped by one thread, since it
    /// stays in the caches; all in one where it would not, or where threads would have nothing to do.
    /// Sums are the same by any.
    pub(super) fn groups(&self) -> Vec<Range<usize>> {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        let all = 0..channels;
        if self.rows || self.len() < SMALL {
            return vec![all];
        }
        let size = 1 << self.neighbours().ilog2();
        let groups = parts(all.clone(), size);
        let (row, run) = (channels * inner, size * inner);
        let aligned = row.is_multiple_of(ITEM) && run.is_multiple_of(ITEM);
        let kept = outer * run <= KEPT;
        let shared_out = groups.clone().count() >= 4 * rayon::current_num_threads();
        match aligned && kept && shared_out {
            true => groups.collect(),
            false => vec![all],
        }
    }

    /// What a kernel makes of each block of some channels, in the order of the blocks.
    pub(super) fn each_block<K>(
        &self,
        channels: Range<usize>,
        kernel: impl Fn(Block) -> K + Sync,
    ) -> Vec<K::Output>
    where
        K: pulp::NullaryFnOnce<Output: Send>,
    {
        let arch = pulp::Arch::new();
        let run = |block| arch.dispatch(kernel(block));
        let blocks = self.blocks(channels);
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
            let row = |step: usize| block.start + step * block.step;
            let valid = |step| self.valid.is_none_or(|flags| flags[block.position + step]);
            let (apart, mut step) = (block.step >= APART, 0);
            while step < block.steps {
                let mut together = step..block.steps.min(step + ROWS);
                if apart && together.len() == ROWS && together.all(valid) {
                    let rows = std::array::from_fn::<_, ROWS, _>(|number| row(step + number));
                    terms.add_rows(rows, true, numbers, &mut sums);
                    step += ROWS;
                } else {
                    terms.add_rows([row(step)], valid(step), numbers, &mut sums);
                    step += 1;
                }
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
        let source = Mapped {
            walk: self,
            formula,
            operands,
            table: self.spread(table),
        };
        collect::in_order(self.len(), &source)
    }

    /// The values of a new tensor by a formula whose numbers are known group by group: those of one are
    /// asked for when it is its turn.
    pub(super) fn map_groups<X: Element, T: Element, const K: usize>(
        &self,
        groups: &[Range<usize>],
        formula: impl Formula<X, T, K>,
        operands: Operands<'_, X, T>,
        table: &(dyn Fn(usize) -> Table<K> + Sync),
    ) -> Vec<T> {
        if groups.len() == 1 {
            return self.map(formula, operands, table(0));
        }
        let source = |group| Mapped {
            walk: self,
            formula,
            operands,
            table: table(group),
        };
        let run = |group: &Range<usize>| group.len() * self.view.inner / ITEM;
        let strips = Strips {
            rounds: self.view.outer,
            items: groups.iter().map(run).collect(),
        };
        collect::in_strips(strips, source)
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
        let arch = pulp::Arch::new();
        let change = |(number, values): (usize, &mut [T])| {
            let start = number * CHUNK;
            let others = start..start + values.len();
            arch.dispatch(Changed {
                walk: self,
                formula,
                x: x.map(|x| &x[others.clone()]),
                residual: residual.map(|residual| &residual[others]),
                table,
                start,
                values,
            });
        };
        match values.len() < SMALL {
            true => values.chunks_mut(CHUNK).enumerate().for_each(change),
            false => values.par_chunks_mut(CHUNK).enumerate().for_each(change),
        }
    }
}

/// A range in parts of a power of two each, no larger than `most`, and what is left. Where all sizes
/// are powers of two, and the sums are exact, so are the means of all parts.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let size = 1 << most.ilog2();
    let end = range.end;
    range
        .step_by(size)
        .map(move |start| start..end.min(start + size))
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

/// The segments from a place on.
pub(super) struct Segments<'a> {
    walk: &'a Walk<'a>,
    outer: usize,
    /// 0 for rows.
    channel: usize,
    /// Within the run or row.
    offset: usize,
}

impl Segments<'_> {
    /// The next one, of at most so many values.
    #[inline(always)]
    fn next(&mut self, most: usize) -> Segment {
        let Walk {
            view, rows, unit, ..
        } = *self.walk;
        let mut count = most.min(unit - self.offset);
        let first = if rows { self.offset } else { self.channel };
        let valid = if rows {
            self.walk.valid.is_none_or(|flags| flags[self.outer])
        } else {
            let position = self.outer * unit + self.offset;
            let (alike, valid) = self.walk.alike(position..position + count);
            count = alike;
            valid
        };
        self.offset += count;
        if self.offset == unit {
            self.offset = 0;
            self.channel += 1;
            if rows || self.channel == view.channels {
                self.channel = 0;
                self.outer += 1;
            }
        }
        Segment {
            count,
            first,
            valid,
        }
    }
}

/// A formula's values.
struct Mapped<'a, F, X, T, const K: usize> {
    walk: &'a Walk<'a>,
    formula: F,
    operands: Operands<'a, X, T>,
    /// For each channel, or for each column.
    table: Table<K>,
}

impl<F: Formula<X, T, K>, X: Element, T: Element, const K: usize> Mapped<'_, F, X, T, K> {
    /// The numbers of a part of a row, and of an item more.
    #[inline(always)]
    fn columns(&self, first: usize, count: usize) -> [&[f64]; K] {
        match self.walk.rows {
            true => self.table.slices(first..first + count + ITEM),
            false => [&[]; K],
        }
    }
}

impl<F: Formula<X, T, K>, X: Element, T: Element, const K: usize> Source
    for Mapped<'_, F, X, T, K>
{
    type Value = T;

    /// Compiled once, for any processor: few items come to this, but where a mask lies over short runs.
    #[inline(never)]
    fn fill(&self, index: usize, out: &mut [T]) {
        let operands = self.operands.at(index..index + out.len());
        let (rows, place) = (self.walk.rows, &mut self.walk.segments(index));
        apply(rows, self.formula, operands, &self.table, place, out);
    }

    #[inline(always)]
    fn fold<D: Folder<[T; ITEM]>>(&self, range: Range<usize>, mut folder: D) -> D {
        // By value, for the compiler to see that no output changes them.
        let Self {
            walk,
            formula,
            operands,
            ref table,
        } = *self;
        let rows = walk.rows;
        let (mut index, mut place) = (range.start, walk.segments(range.start));
        while index < range.end {
            let Segment {
                count,
                first,
                valid,
            } = place.next(range.end - index);
            let rest = count % ITEM;
            let whole = count - rest;
            let shared = table.at(first);
            let columns = self.columns(first, count);
            let own = operands.at(index..index + whole);
            if rows {
                for done in (0..whole).step_by(ITEM) {
                    let range = done..done + ITEM;
                    let numbers = part(columns, range.clone());
                    folder = folder.consume(formula.item(own.at(range), valid, numbers));
                }
            } else {
                for done in (0..whole).step_by(ITEM) {
                    let operands = own.at(done..done + ITEM);
                    folder = folder.consume(formula.item(operands, valid, shared));
                }
            }
            index += whole;
            if rest == 0 {
                continue;
            }
            // An item whose values belong to two segments, or more.
            let next = place.next(ITEM - rest);
            let item = if rest + next.count < ITEM || next.valid != valid {
                place = walk.segments(index + ITEM);
                let mut item = [T::from_f64(0.0); ITEM];
                self.fill(index, &mut item);
                item
            } else if rows {
                let numbers = part(columns, whole..whole + ITEM);
                formula.item(operands.at(index..index + ITEM), valid, numbers)
            } else {
                let (heads, tails) = (shared, table.at(next.first));
                let both: [Both; K] = std::array::from_fn(|number| Both {
                    head: heads[number],
                    tail: tails[number],
                    split: rest,
                });
                formula.item(operands.at(index..index + ITEM), valid, both)
            };
            folder = folder.consume(item);
            index += ITEM;
        }
        folder
    }
}

/// A formula's values for operands that are the next of a walk.
#[inline(always)]
fn apply<F: Formula<X, T, K>, X: Element, T: Element, const K: usize>(
    rows: bool,
    formula: F,
    operands: Operands<'_, X, T>,
    table: &Table<K>,
    segments: &mut Segments<'_>,
    out: &mut [T],
) {
    let mut done = 0;
    while done < out.len() {
        let Segment {
            count,
            first,
            valid,
        } = segments.next(out.len() - done);
        let operands = operands.at(done..done + count);
        let out = &mut out[done..done + count];
        if rows {
            let numbers = table.slices(first..first + count);
            formula.apply(operands, valid, numbers, out);
        } else {
            formula.apply(operands, valid, table.at(first), out);
        }
        done += count;
    }
}

/// A formula's values, to be written over one of its operands.
struct Changed<'a, F, T, const K: usize> {
    walk: &'a Walk<'a>,
    formula: F,
    x: Option<&'a [T]>,
    residual: Option<&'a [T]>,
    table: &'a Table<K>,
    /// The flat index of the first value.
    start: usize,
    values: &'a mut [T],
}

impl<F: Formula<T, T, K>, T: Element, const K: usize> pulp::NullaryFnOnce for Changed<'_, F, T, K> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let mut place = self.walk.segments(self.start);
        let mut batch = [T::from_f64(0.0); BATCH];
        for (number, values) in self.values.chunks_mut(BATCH).enumerate() {
            let others = number * BATCH..number * BATCH + values.len();
            let operands = Operands {
                x: self.x.map_or(&*values, |x| &x[others.clone()]),
                dy: &*values,
                residual: self
                    .residual
                    .map_or(&*values, |residual| &residual[others.clone()]),
            };
            let (rows, formula) = (self.walk.rows, self.formula);
            let batch = &mut batch[..values.len()];
            apply(rows, formula, operands, self.table, &mut place, batch);
            values.copy_from_slice(batch);
        }
    }
}
