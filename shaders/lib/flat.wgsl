// One invocation for each of many, in one row after another of the grid.

/// Invocations of a workgroup.
override LANES: u32 = 1u;

fn flat_index(workgroup: vec3<u32>, grid: vec3<u32>, local: u32) -> u32 {
    return (workgroup.y * grid.x + workgroup.x) * LANES + local;
}
