// The gradient of the residual is that of what enters the activation.

@group(0) @binding(7) var<storage, read_write> residual_gradient: array<Stored>;

fn put_residual_gradient(index: u32, gradient: Pack, next: Pack) {
    residual_gradient[index] = packed(gradient, next);
}
