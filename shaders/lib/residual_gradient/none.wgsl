// No gradient of a residual is wanted.

fn put_residual_gradient(index: u32, gradient: Pack, next: Pack) {
}
