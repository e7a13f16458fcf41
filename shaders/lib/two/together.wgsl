// Two packs that a lane comes to one after the other: twins at one address, loaded and stored at once.

/// Packs at an address.
const TWINS: u32 = 2u;

/// The walk's next two places: there always is `another`, which is as in the other file.
fn next_two(another: bool, walk: ptr<function, Walk>) -> Two {
    let both = next(walk);
    return Two(
        Place(both.address, 0u, both.place_in_plane, both.number, false),
        Place(both.address, 1u, both.place_in_plane, both.number + NUMBERS - 1u, both.last),
    );
}
