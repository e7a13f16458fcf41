// What the activation cut is not kept: the backward pass computes it anew.

struct Kept {
    nothing: u32,
}

fn kept_of(column: u32) -> Kept {
    return Kept();
}

fn begin_kept(at: Place, kept: Kept) {
}

fn keep(z: Pack) {
}

fn write_kept(at: Place) {
}
