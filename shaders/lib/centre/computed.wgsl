// Normalization by statistics that the kernel itself computes.

var<private> computed: Centre;

fn centre_of(column: u32) -> Centre {
    return computed;
}
