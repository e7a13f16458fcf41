// One step of gradient descent on a vector of parameters, by the formulas of PyTorch's torch.optim.
//
// in      gradient   [length]
// in/out  parameter  [length]
//         state      [slots, length], zero before the first step; what a slot holds is said at
//                    each entry point
//
// One invocation per value: lib/flat. Twin on the CPU: src/cpu/optimizer.rs.

/// Each algorithm reads what is named for it.
struct Settings {
    length: u32,
    learning_rate: f32,
    weight_decay: f32,
    eps: f32,
    /// SGD, RMSProp: momentum. Adam: beta1.
    momentum: f32,
    /// Weight of the gradient next to it. SGD: 1 - dampening (1 in the first step).
    /// RMSProp: 1. Adam: 1 - beta1.
    gradient_weight: f32,
    /// RMSProp: alpha. Adam: beta2.
    decay: f32,
    /// Weight of the squared gradient next to it: 1 - decay, rounded once.
    square_weight: f32,
    /// Adam: 1 - beta1^t for step t.
    bias_correction_1: f32,
    /// Adam: sqrt(1 - beta2^t).
    bias_correction_2_sqrt: f32,
    /// SGD: Nesterov momentum. RMSProp: centered. Adam: AMSGrad.
    variant: u32,
}

@group(0) @binding(0) var<uniform> settings: Settings;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> parameter: array<f32>;
@group(0) @binding(3) var<storage, read_write> state: array<f32>;

fn decayed_gradient(i: u32) -> f32 {
    return gradient[i] + settings.weight_decay * parameter[i];
}

/// Stochastic gradient descent. state: velocity.
@compute @workgroup_size(LANES)
fn sgd(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i >= settings.length {
        return;
    }
    let g = decayed_gradient(i);
    // Without momentum the past has no part in it, not even one that is no number.
    let past = select(0.0, settings.momentum * state[i], settings.momentum > 0.0);
    let velocity = past + settings.gradient_weight * g;
    state[i] = velocity;
    let direction = select(velocity, g + settings.momentum * velocity, settings.variant == 1u);
    parameter[i] -= settings.learning_rate * direction;
}

/// RMSProp. state: mean square, velocity, mean.
@compute @workgroup_size(LANES)
fn rmsprop(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i >= settings.length {
        return;
    }
    let g = decayed_gradient(i);
    let square = settings.decay * state[i] + settings.square_weight * (g * g);
    state[i] = square;
    var spread = square;
    if settings.variant == 1u {
        let mean_at = i + 2u * settings.length;
        let mean = settings.decay * state[mean_at] + settings.square_weight * g;
        state[mean_at] = mean;
        spread = max(square - mean * mean, 0.0);
    }
    let velocity_at = i + settings.length;
    let velocity = settings.momentum * state[velocity_at] + g / (sqrt(spread) + settings.eps);
    state[velocity_at] = velocity;
    parameter[i] -= settings.learning_rate * velocity;
}

/// Adam. state: mean, mean square, largest mean square.
@compute @workgroup_size(LANES)
fn adam(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let i = flat_index(workgroup, grid, local);
    if i >= settings.length {
        return;
    }
    let g = decayed_gradient(i);
    let mean = settings.momentum * state[i] + settings.gradient_weight * g;
    state[i] = mean;
    let square_at = i + settings.length;
    let square = settings.decay * state[square_at] + settings.square_weight * (g * g);
    state[square_at] = square;
    var spread = square;
    if settings.variant == 1u {
        let largest_at = i + 2u * settings.length;
        spread = max(state[largest_at], square);
        state[largest_at] = spread;
    }
    let denominator = sqrt(spread) / settings.bias_correction_2_sqrt + settings.eps;
    parameter[i] -= settings.learning_rate / settings.bias_correction_1 * mean / denominator;
}
