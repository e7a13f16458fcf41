//! New vectors, whose memory is written once, by all threads.
//!
//! Safe Rust has no vector to write into that nobody has filled before, except through rayon's
//! `collect`, which takes items in order: an item is a cache line.

use std::ops::Range;

use rayon::iter::plumbing::{
    Consumer, Folder, Producer, ProducerCallback, Reducer, UnindexedConsumer, bridge,
};
use rayon::prelude::*;

use super::Element;
use super::walk::SMALL;

/// Values that rayon is given at a time.
pub(super) const ITEM: usize = 16;

/// What the values of a new vector are.
pub(super) trait Source: Sync {
    type Value: Element;

    /// Fills in neighbouring values, of which the first has an index.
    fn fill(&self, index: usize, out: &mut [Self::Value]);

    /// Gives the items of a range to what takes them.
    #[inline(always)]
    fn fold<F: Folder<[Self::Value; ITEM]>>(&self, range: Range<usize>, mut folder: F) -> F {
        for index in range.step_by(ITEM) {
            let mut item = [Self::Value::from_f64(0.0); ITEM];
            self.fill(index, &mut item);
            folder = folder.consume(item);
        }
        folder
    }
}

/// A new vector.
pub(super) fn in_order<S: Source>(len: usize, source: &S) -> Vec<S::Value> {
    let whole = len / ITEM;
    // The last one is not whole.
    let mut items = Vec::with_capacity(whole + 1);
    let all = Items {
        source,
        range: 0..whole,
    };
    all.collect_into_vec(&mut items);
    let mut values = items.into_flattened();
    let mut rest = [S::Value::from_f64(0.0); ITEM];
    let rest = &mut rest[..len % ITEM];
    source.fill(whole * ITEM, rest);
    values.extend_from_slice(rest);
    values
}

/// How a vector is cut into strips that belong to groups: to the first, the second and so on, and then,
/// in the next round, to the first again.
pub(super) struct Strips {
    pub(super) rounds: usize,
    /// How many items the strips of each group have.
    pub(super) items: Vec<usize>,
}

/// A new vector, made group by group: all strips of one by one thread, from a source that is asked for
/// when it is the group's turn.
pub(super) fn in_strips<S: Source>(
    strips: Strips,
    source: impl Fn(usize) -> S + Sync + Send,
) -> Vec<S::Value> {
    let mut items = Vec::new();
    Grouped { strips, source }.collect_into_vec(&mut items);
    items.into_flattened()
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
        self.drive(consumer)
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
        match self.range.len() * ITEM < SMALL {
            true => Producer::fold_with(self, consumer.into_folder()).complete(),
            false => bridge(self, consumer),
        }
    }

    fn with_producer<C: ProducerCallback<Self::Item>>(self, callback: C) -> C::Output {
        callback.callback(self)
    }
}

impl<'a, S: Source> Producer for Items<'a, S> {
    type Item = [S::Value; ITEM];
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        let item = |number: usize| {
            let mut item = [S::Value::from_f64(0.0); ITEM];
            self.source.fill(number * ITEM, &mut item);
            item
        };
        self.range.map(item).collect::<Vec<_>>().into_iter()
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
        source.fold(range.start * ITEM..range.end * ITEM, self.folder)
    }
}

/// The items of a vector in strips, with the source of each group.
struct Grouped<M> {
    strips: Strips,
    source: M,
}

impl<S: Source, M: Fn(usize) -> S + Sync + Send> ParallelIterator for Grouped<M> {
    type Item = [S::Value; ITEM];

    fn drive_unindexed<C: UnindexedConsumer<Self::Item>>(self, consumer: C) -> C::Result {
        self.drive(consumer)
    }

    fn opt_len(&self) -> Option<usize> {
        Some(self.len())
    }
}

impl<S: Source, M: Fn(usize) -> S + Sync + Send> IndexedParallelIterator for Grouped<M> {
    fn len(&self) -> usize {
        self.strips.rounds * self.strips.items.iter().sum::<usize>()
    }

    fn drive<C: Consumer<Self::Item>>(self, consumer: C) -> C::Result {
        // What takes the items is cut into strips in the order of memory,
        let Self { strips, source } = self;
        let groups = strips.items.iter();
        let mut takers: Vec<_> = groups.map(|_| Vec::with_capacity(strips.rounds)).collect();
        let (mut rest, mut reducers, mut start) = (consumer, Vec::new(), 0);
        for _ in 0..strips.rounds {
            for (takers, &items) in takers.iter_mut().zip(&strips.items) {
                let (head, tail, reducer) = rest.split_at(items);
                takers.push((start..start + items, head));
                reducers.push(reducer);
                (rest, start) = (tail, start + items);
            }
        }
        // these are given to the groups,
        let fill = |(group, takers): (usize, Vec<(Range<usize>, C)>)| {
            let source = &source(group);
            let fill = |(range, taker): (Range<usize>, C)| {
                let items = Items { source, range };
                Producer::fold_with(items, taker.into_folder()).complete()
            };
            takers.into_iter().map(fill).collect::<Vec<_>>().into_iter()
        };
        let filled = takers.into_par_iter().enumerate().map(fill);
        let mut filled: Vec<_> = filled.collect();
        // and what comes of them is joined in the order of memory.
        let mut found = Vec::with_capacity(reducers.len());
        for _ in 0..strips.rounds {
            found.extend(filled.iter_mut().filter_map(Iterator::next));
        }
        let last = rest.into_folder().complete();
        let pairs = found.into_iter().zip(reducers).rev();
        pairs.fold(last, |right, (left, reducer)| reducer.reduce(left, right))
    }

    fn with_producer<C: ProducerCallback<Self::Item>>(self, callback: C) -> C::Output {
        let mut items = Vec::new();
        self.collect_into_vec(&mut items);
        items.into_par_iter().with_producer(callback)
    }
}
