//! The CPU path's side of `scripts/cpu_pytorch.py`, which runs it beside PyTorch. It reads a case's
//! tensors from a folder and then, line by line from standard input, what to do: an operation and how
//! often. Each time it answers with the seconds of every repetition. The result of a single one it
//! writes to the folder.

use std::error::Error;
use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use ndarray::{Array1, ArrayD};
use wgpu_batchnorm::{Layout, Options, State, Stored, Wanted, cpu, half};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or("folder, type, layout, dimensions");
    let (folder, dtype, layout) = (argument()?, argument()?, argument()?);
    let dims: Result<Vec<usize>, _> = argument()?.split(',').map(str::parse).collect();
    let layout = match layout.as_str() {
        "channels-last" => Layout::ChannelsLast,
        _ => Layout::ChannelsFirst,
    };
    match dtype.as_str() {
        "float16" => serve::<half::f16>(Path::new(&folder), &dims?, layout),
        "bfloat16" => serve::<half::bf16>(Path::new(&folder), &dims?, layout),
        _ => serve::<f32>(Path::new(&folder), &dims?, layout),
    }
}

fn read<T: bytemuck::Pod>(folder: &Path, name: &str) -> Result<Vec<T>, Box<dyn Error>> {
    let bytes = std::fs::read(folder.join(name))?;
    Ok(bytemuck::pod_collect_to_vec(&bytes))
}

fn write<T: Stored>(folder: &Path, name: &str, array: &ArrayD<T>) -> Result<(), Box<dyn Error>> {
    let values = array.as_slice().ok_or("a result is in order")?;
    Ok(std::fs::write(
        folder.join(name),
        bytemuck::cast_slice::<T, u8>(values),
    )?)
}

fn serve<T: Stored>(folder: &Path, dims: &[usize], layout: Layout) -> Result<(), Box<dyn Error>> {
    let tensor = |name| -> Result<ArrayD<T>, Box<dyn Error>> {
        Ok(ArrayD::from_shape_vec(dims, read(folder, name)?)?)
    };
    let vector = |name| -> Result<Array1<f32>, Box<dyn Error>> {
        Ok(Array1::from(read::<f32>(folder, name)?))
    };
    let (x, dy) = (tensor("x")?, tensor("dy")?);
    let options = Options::default();
    let mut state = State::new(0);
    (state.gamma, state.beta) = (vector("gamma")?, vector("beta")?);
    (state.running_mean, state.running_var) = (vector("running_mean")?, vector("running_var")?);
    let affine = cpu::Affine::new(&state, &options);
    let batch = cpu::statistics(&x, layout)?;

    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (operation, times) = line.split_once(' ').ok_or("an operation and how often")?;
        let times: usize = times.parse()?;
        let mut seconds = Vec::new();
        for _ in 0..times {
            let start = Instant::now();
            let found = match operation {
                "forward" => {
                    let statistics = cpu::statistics(&x, layout)?;
                    let (mean, var) = (&mut state.running_mean, &mut state.running_var);
                    cpu::update_running(mean, var, &statistics, &options, 0)?;
                    cpu::normalize(&x, layout, &statistics, &affine, None)?
                }
                "inference" => {
                    let [mean, var] =
                        [&state.running_mean, &state.running_var].map(|v| v.mapv(f64::from));
                    let statistics = cpu::Statistics::constant(mean, var);
                    cpu::normalize(&x, layout, &statistics, &affine, None)?
                }
                _ => {
                    let wanted = Wanted::default();
                    let (found, _) =
                        cpu::backward(&x, &dy, layout, &batch, &affine, None, None, &wanted)?;
                    found.dx.ok_or("it was wanted")?
                }
            };
            seconds.push(start.elapsed().as_secs_f64().to_string());
            if times == 1 {
                write(folder, "result", &found)?;
            }
        }
        println!("{}", seconds.join(" "));
    }
    Ok(())
}
