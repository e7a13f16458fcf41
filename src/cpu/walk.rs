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

use rayon::iter::plumbing::{
    Consumer, Folder, Producer, ProducerCallback, UnindexedConsumer, bridge,
};
use rayon::prelude::*;

use super::Element;
use crate::View;

/// Values of an output that rayon is given at a time.
const ITEM: usize = 16;
/// Values of an output that are computed at a time: about as many as a core's queue of stores holds,
/// so that they are on their way to memory while the next are computed.
const BATCH: usize = 32 * ITEM;
/// Values of an output that are computed together: several of the processor's vectors.
const GROUP: usize = 8;
/// Values that are written over at a time.
const CHUNK: usize = 16 * BATCH;
/// Values that are summed at a time, at most: they stay in a core's cache for a second pass.
const BLOCK: usize = 1 << 16;
/// Values of neighbouring runs that are summed side by side, so that memory is read in order.
const NEIGHBOURS: usize = 4096;
/// Shorter runs are taken as columns of a row.
const SHORT: usize = 16;
/// Columns of a row: narrower ones are joined, wider ones are summed in parts.
const COLUMNS: Range<usize> = 256..1024;
/// Accumulators of a sum over a run.
pub(super) const LANES: usize = 8;
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
    /// Those of some of the values.
    fn part(self, range: Range<usize>) -> Self;
    /// That of a value.
    fn at(self, index: usize) -> f64;
}

impl PerChannel for f64 {
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
    #[inline(always)]
    fn part(self, range: Range<usize>) -> Self {
        &self[range]
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
    fn at(&self, index: usize) -> [f64; K] {
        self.0.each_ref().map(|column| column[index])
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
    /// Computes it for some neighbouring values, which count or do not.
    fn values<P: PerChannel, const L: usize>(
        self,
        operands: Operands<'_, X, T>,
        valid: bool,
        numbers: [P; K],
        out: &mut [T; L],
    );

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
                let numbers = numbers.map(|numbers| numbers.part(done..done + 1));
                let (operands, out) = (operands.at(done..done + 1), &mut out[done..done + 1]);
                if let Some(out) = out.first_chunk_mut::<1>() {
                    self.values(operands, valid, numbers, out);
                }
                done += 1;
            } else {
                let first = done.min(count - GROUP);
                let group = first..first + GROUP;
                let numbers = numbers.map(|numbers| numbers.part(group.clone()));
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

    /// The parts in which the tensor is summed, in the order in which they are added: the first in
    /// memory last, so that the pass over memory that comes next finds them in the caches.
    fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        if self.len() == 0 {
            return blocks;
        }
        if self.rows {
            self.row_blocks(&mut blocks);
        } else {
            self.run_blocks(&mut blocks);
        }
        blocks.sort_by_key(|block| Reverse(block.start));
        blocks
    }

    fn row_blocks(&self, blocks: &mut Vec<Block>) {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        let row = channels * inner;
        let joined = self.unit / row;
        // Wide rows in parts, of whole channels.
        let width = (COLUMNS.end / inner).max(1);
        for part in parts(0..channels, width) {
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

    fn run_blocks(&self, blocks: &mut Vec<Block>) {
        let View {
            outer,
            channels,
            inner,
        } = self.view;
        for part in parts(0..channels, (NEIGHBOURS / inner).max(1)) {
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
        let (walk, table) = (self, &self.spread(table));
        let source = Mapped {
            walk,
            formula,
            operands,
            table,
        };
        filled(self.len(), &source)
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

/// What the values of a new vector are.
pub(super) trait Source: Sync {
    type Value: Element;
    /// What it takes to go on from a value to the next.
    type Place;

    /// The place of the value with an index.
    fn place(&self, index: usize) -> Self::Place;

    /// Fills in the next values, of which the first has an index.
    fn fill(&self, place: &mut Self::Place, index: usize, out: &mut [Self::Value]);
}

/// A new vector, whose memory is written once.
pub(super) fn filled<S: Source>(len: usize, source: &S) -> Vec<S::Value> {
    let whole = len / ITEM;
    // The last one is not whole.
    let mut items = Vec::with_capacity(whole + 1);
    let all = Items {
        source,
        range: 0..whole,
    };
    match len < SMALL {
        true => items = Producer::fold_with(all, InVec(items)).complete(),
        false => all.collect_into_vec(&mut items),
    }
    let mut values = items.into_flattened();
    let mut rest = [S::Value::from_f64(0.0); ITEM];
    let rest = &mut rest[..len % ITEM];
    source.fill(&mut source.place(whole * ITEM), whole * ITEM, rest);
    values.extend_from_slice(rest);
    values
}

/// Some items of a new vector, by their numbers. rayon's own iterators would take each from a
/// function, and that from code for any processor; this one is a loop for the processor at hand.
struct Items<'a, S> {
    source: &'a S,
    range: Range<usize>,
}

impl<S: Source> ParallelIterator for Items<'_, S> {
    type Item = [S::Value; ITEM];

    fn drive_unindexed<C: UnindexedConsumer<Self::Item>>(self, consumer: C) -> C::Result {
        bridge(self, consumer)
    }

    fn opt_len(&self) -> Option<usize> {
        Some(self.range.len())
    }
}

impl<S: Source> IndexedParallelIterator for Items<'_, S> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn drive<C: Consumer<Self::Item>>(self, consumer: C) -> C::Result {
        bridge(self, consumer)
    }

    fn with_producer<C: ProducerCallback<Self::Item>>(self, callback: C) -> C::Output {
        callback.callback(self)
    }
}

impl<'a, S: Source> Producer for Items<'a, S> {
    type Item = [S::Value; ITEM];
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        Producer::fold_with(self, InVec(Vec::new()))
            .complete()
            .into_iter()
    }

    fn split_at(self, index: usize) -> (Self, Self) {
        let source = self.source;
        let middle = self.range.start + index;
        let [head, tail] = [self.range.start..middle, middle..self.range.end];
        let part = |range| Self { source, range };
        (part(head), part(tail))
    }

    fn fold_with<F: Folder<Self::Item>>(self, folder: F) -> F {
        let items = self;
        pulp::Arch::new().dispatch(Folded { items, folder })
    }
}

/// Where there is one thread, its items.
struct InVec<T>(Vec<T>);

impl<T> Folder<T> for InVec<T> {
    type Result = Vec<T>;

    #[inline(always)]
    fn consume(mut self, item: T) -> Self {
        self.0.push(item);
        self
    }

    fn complete(self) -> Vec<T> {
        self.0
    }

    fn full(&self) -> bool {
        false
    }
}

/// Items, given one after the other to what takes them.
struct Folded<'a, S, F> {
    items: Items<'a, S>,
    folder: F,
}

impl<S: Source, F: Folder<[S::Value; ITEM]>> pulp::NullaryFnOnce for Folded<'_, S, F> {
    type Output = F;

    #[inline(always)]
    fn call(self) -> F {
        let Items { source, range } = self.items;
        let (mut folder, end) = (self.folder, range.end * ITEM);
        let mut index = range.start * ITEM;
        let mut place = source.place(index);
        let mut batch = [S::Value::from_f64(0.0); BATCH];
        while index < end && !folder.full() {
            let batch = &mut batch[..BATCH.min(end - index)];
            source.fill(&mut place, index, batch);
            index += batch.len();
            let (items, _) = batch.as_chunks::<ITEM>();
            for item in items {
                folder = folder.consume(*item);
            }
        }
        folder
    }
}

/// A range in parts of a power of two each, no larger than `most`, and what is left. Where all sizes
/// are powers of two, and the sums are exact, so are the means of all parts.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
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
    table: &'a Table<K>,
}

impl<'a, F: Formula<X, T, K>, X: Element, T: Element, const K: usize> Source
    for Mapped<'a, F, X, T, K>
{
    type Value = T;
    type Place = Segments<'a>;

    #[inline(always)]
    fn place(&self, index: usize) -> Segments<'a> {
        self.walk.segments(index)
    }

    #[inline(always)]
    fn fill(&self, place: &mut Segments<'a>, index: usize, out: &mut [T]) {
        let operands = self.operands.at(index..index + out.len());
        apply(
            self.walk.rows,
            self.formula,
            operands,
            self.table,
            place,
            out,
        );
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
