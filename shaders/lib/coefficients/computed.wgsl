// What the gradient of x needs of a channel is computed by the kernel itself.

var<private> computed: Coefficients;

fn coefficients(column: u32) -> Coefficients {
    return computed;
}
