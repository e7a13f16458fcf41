// Copies packs of four words, as plainly as can be: what all operations on tensors are measured
// against.
//
// in   source  [packs]
// out  copied  [packs]
//
// A workgroup takes LANES * PACKS neighbouring packs; its lanes go side by side. PACKS is a multiple
// of four: the loads of four packs are under way before the first is stored.

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<u32>>;

override LANES: u32 = 1u;
override PACKS: u32 = 4u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let packs = arrayLength(&source);
    let tile = workgroup.y * grid.x + workgroup.x;
    var at = tile * LANES * PACKS + local;
    var remaining = PACKS;
    while remaining > 0u && at + 3u * LANES < packs {
        let a = source[at];
        let b = source[at + LANES];
        let c = source[at + 2u * LANES];
        let d = source[at + 3u * LANES];
        copied[at] = a;
        copied[at + LANES] = b;
        copied[at + 2u * LANES] = c;
        copied[at + 3u * LANES] = d;
        at += 4u * LANES;
        remaining -= 4u;
    }
    while remaining > 0u && at < packs {
        copied[at] = source[at];
        at += LANES;
        remaining -= 1u;
    }
}
