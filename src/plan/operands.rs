//! Which ranges an operation takes, and whether those that it is given can be bound.

use wgpu::BufferSlice;

use super::buffers::Named;
use super::{Plan, Step, channel_bytes};
use crate::gpu::check_size;
use crate::kernels::Choice;
use crate::{Activation, Error, Gpu, Parameter};

/// Whether an operation takes a range.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Take {
    Must,
    May,
    /// It does not, because of this.
    Not(Collision),
}

/// What a range collides with, and why.
pub(super) type Collision = (&'static str, &'static str);

impl Take {
    pub(super) fn must_if(holds: bool, otherwise: Collision) -> Self {
        if holds {
            Self::Must
        } else {
            Self::Not(otherwise)
        }
    }

    pub(super) fn may_if(holds: bool, otherwise: Collision) -> Self {
        if holds {
            Self::May
        } else {
            Self::Not(otherwise)
        }
    }
}

/// The checked ranges of an operation.
pub(super) struct Operands<'a> {
    ranges: Vec<Named<'a>>,
}

impl<'a> Operands<'a> {
    pub(super) fn get(&self, name: &str) -> Option<BufferSlice<'a>> {
        self.ranges
            .iter()
            .find(|(found, _)| *found == name)
            .map(|&(_, range)| range)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether two names have the same range.
    pub(super) fn same(&self, a: &str, b: &str) -> bool {
        match (self.get(a), self.get(b)) {
            (Some(a), Some(b)) => is_same(a, b),
            _ => false,
        }
    }
}

pub(super) const FROZEN_STATISTICS: Collision = (
    "frozen_statistics(true)",
    "constants do not ask which positions count",
);
const NO_ACTIVATION: Collision = ("activation(Activation::Identity)", "nothing is cut");
const ABSENT: &str = "what is absent has no range";
const NOT_LEARNED: &str = "what is not learned has no gradient";

impl Plan {
    pub(super) fn refuse_frozen(&self, operation: &'static str) -> Result<(), Error> {
        if self.options.frozen_statistics {
            return Err(Error::Conflict {
                first: operation,
                second: FROZEN_STATISTICS.0,
                reason: "statistics that are constants need no batch",
            });
        }
        Ok(())
    }

    pub(super) fn takes_running(&self) -> Take {
        let there = self.options.running_statistics;
        Take::must_if(there, ("running_statistics(false)", ABSENT))
    }

    pub(super) fn takes_gamma(&self) -> Take {
        let there = self.options.gamma != Parameter::Absent;
        Take::must_if(there, ("gamma(Parameter::Absent)", ABSENT))
    }

    pub(super) fn takes_beta(&self) -> Take {
        let there = self.options.beta != Parameter::Absent;
        Take::must_if(there, ("beta(Parameter::Absent)", ABSENT))
    }

    pub(super) fn cuts(&self) -> bool {
        self.options.activation != Activation::Identity
    }

    /// What every forward pass takes.
    pub(super) fn forward_takes(&self, given: &[Named<'_>]) -> Vec<(&'static str, Take)> {
        let residual = given.iter().any(|(name, _)| *name == "residual");
        let mask = match (self.cuts(), residual) {
            (true, true) => Take::Must,
            (true, false) => Take::Not((
                "no residual",
                "without one, the backward pass computes anew what was cut",
            )),
            (false, _) => Take::Not(NO_ACTIVATION),
        };
        vec![
            ("x", Take::Must),
            ("y", Take::Must),
            ("gamma", self.takes_gamma()),
            ("beta", self.takes_beta()),
            ("residual", Take::May),
            ("mask", mask),
        ]
    }

    /// What every backward pass takes.
    pub(super) fn backward_takes(&self, given: &[Named<'_>]) -> Vec<(&'static str, Take)> {
        let has = |name| given.iter().any(|(found, _)| *found == name);
        let frozen = self.options.frozen_statistics;
        let beta = match (self.takes_beta(), self.cuts()) {
            (Take::Must, false) => Take::May,
            (take, _) => take,
        };
        let no_dx = ("no dx", "one kernel writes both");
        let mask = match (self.cuts(), has("residual_gradient")) {
            (true, true) => Take::Must,
            (cuts, _) => Take::may_if(cuts, NO_ACTIVATION),
        };
        let learned = |parameter| parameter == Parameter::Learned;
        vec![
            ("x", Take::Must),
            ("dy", Take::Must),
            ("saved", Take::Must),
            ("gamma", self.takes_gamma()),
            ("beta", beta),
            ("mask", mask),
            ("valid", Take::may_if(!frozen, FROZEN_STATISTICS)),
            ("dx", Take::May),
            ("residual_gradient", Take::may_if(has("dx"), no_dx)),
            (
                "dgamma",
                Take::may_if(
                    learned(self.options.gamma),
                    ("gamma that is not learned", NOT_LEARNED),
                ),
            ),
            (
                "dbeta",
                Take::may_if(
                    learned(self.options.beta),
                    ("beta that is not learned", NOT_LEARNED),
                ),
            ),
        ]
    }

    /// The given ranges, if they are those that an operation takes, each of its size, and none
    /// that is written overlaps another.
    pub(super) fn operands<'a>(
        &self,
        operation: &'static str,
        given: &[Named<'a>],
        takes: &[(&'static str, Take)],
        shards: u64,
    ) -> Result<Operands<'a>, Error> {
        for &(first, _) in given {
            let take = takes.iter().find(|(taken, _)| *taken == first);
            let (second, reason) = match take {
                Some((_, Take::Not(collision))) => *collision,
                Some(_) => continue,
                None => (operation, "it has no use for that range"),
            };
            return Err(Error::Conflict {
                first,
                second,
                reason,
            });
        }
        for &(tensor, take) in takes {
            if take == Take::Must && !given.iter().any(|(name, _)| *name == tensor) {
                return Err(Error::MissingBuffer { tensor });
            }
        }
        let empty = self.shape.is_empty();
        let mut ranges = Vec::new();
        for &(tensor, range) in given {
            // The values of an empty tensor are nowhere.
            if empty && is_tensor(tensor) {
                continue;
            }
            check_storage(&self.gpu, tensor, range)?;
            let expected = self.bytes_of(tensor) * if is_of_shards(tensor) { shards } else { 1 };
            if range.size() != expected {
                return Err(Error::BufferSize {
                    tensor,
                    expected,
                    found: range.size(),
                });
            }
            // These are bound whole.
            if ["mask", "valid"].contains(&tensor) {
                let limit = self.gpu.limits().max_storage_buffer_binding_size;
                check_size(tensor, expected, limit.min(u64::from(u32::MAX) / 8))?;
            }
            ranges.push((tensor, range));
        }
        Ok(Operands { ranges })
    }

    /// How many bytes a named range has, of one shard.
    pub(super) fn bytes_of(&self, name: &str) -> u64 {
        match name {
            "saved" => self.saved_bytes(),
            "mask" => self.mask_bytes(),
            "valid" => self.valid_bytes(),
            "moments" => self.moments_bytes(),
            "sums" => self.sums_bytes(),
            name if is_tensor(name) => self.shape.bytes(self.dtype),
            _ => channel_bytes(&self.shape),
        }
    }
}

/// Whether a name is that of a tensor, of which each dispatch binds a slice.
pub(super) fn is_tensor(name: &str) -> bool {
    ["x", "y", "dy", "dx", "residual", "residual_gradient"].contains(&name)
}

/// Whether a range has a part for each shard of a batch.
fn is_of_shards(name: &str) -> bool {
    ["moments", "sums"].contains(&name)
}

/// Fails unless the range can be bound as storage.
pub(crate) fn check_storage(
    gpu: &Gpu,
    tensor: &'static str,
    range: BufferSlice<'_>,
) -> Result<(), Error> {
    let usage = wgpu::BufferUsages::STORAGE;
    if !range.buffer().usage().contains(usage) {
        return Err(Error::MissingUsage { tensor, usage });
    }
    let alignment = u64::from(gpu.limits().min_storage_buffer_offset_alignment);
    if !range.offset().is_multiple_of(alignment) {
        return Err(Error::Misaligned {
            tensor,
            offset: range.offset(),
            alignment,
        });
    }
    Ok(())
}

fn is_same(a: BufferSlice<'_>, b: BufferSlice<'_>) -> bool {
    a.buffer() == b.buffer() && a.offset() == b.offset() && a.size() == b.size()
}

/// Whether a step writes to a buffer which it also reads, elsewhere.
pub(super) fn shares(operands: &Operands<'_>, choice: &Choice, step: &Step<'_>) -> bool {
    let (writes, reads) = step.entry.uses(choice);
    let written = writes.iter().filter_map(|name| match *name {
        // What a merge is given is bound as something written.
        "partials" => Some(step.partials),
        name => operands.get(name),
    });
    let read: Vec<_> = reads.iter().filter_map(|name| operands.get(name)).collect();
    written
        .into_iter()
        .any(|to| read.iter().any(|from| from.buffer() == to.buffer()))
}

/// Fails if a range is written that overlaps another range of the operation; but for what is
/// computed in place.
pub(super) fn check_overlap(
    operands: &Operands<'_>,
    choice: &Choice,
    steps: &[Step<'_>],
) -> Result<(), Error> {
    let written: Vec<_> = steps
        .iter()
        .flat_map(|step| step.entry.uses(choice).0)
        .collect();
    for &(output, a) in &operands.ranges {
        if !written.contains(&output) {
            continue;
        }
        for &(other, b) in &operands.ranges {
            let in_place = choice.in_place && [("y", "x"), ("dx", "dy")].contains(&(output, other));
            let overlap = a.offset() < b.offset() + b.size() && b.offset() < a.offset() + a.size();
            if output != other && !in_place && a.buffer() == b.buffer() && overlap {
                return Err(Error::Overlap { output, other });
            }
        }
    }
    Ok(())
}
