// Two packs that a lane comes to one after the other: each has an address of its own.

/// Packs at an address.
const TWINS: u32 = 1u;

/// The walk's next place and, if there is another, that; else the first again.
fn next_two(another: bool, walk: ptr<function, Walk>) -> Two {
    let first = next(walk);
    return Two(first, next_if(another, first, walk));
}
