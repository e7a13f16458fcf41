//! Which adapter is opened: wgpu's environment variables, in processes of their own.

use std::process::Command;

use wgpu_batchnorm::Gpu;

/// What a process with these environment variables opens: the name, or the error.
fn opened_with(variables: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().expect("a test has a path"));
    child.args(["--ignored", "--exact", "child", "--nocapture"]);
    for name in ["WGPU_BACKEND", "WGPU_ADAPTER_NAME", "WGPU_POWER_PREF"] {
        child.env_remove(name);
    }
    let output = child
        .envs(variables.iter().copied())
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("opened "));
    line.unwrap_or_else(|| panic!("the child said {text}"))
        .to_owned()
}

#[test]
#[ignore = "the child process of the other tests"]
fn child() {
    // A line of its own: the test runner prints the test's name without one.
    match Gpu::open_blocking() {
        Ok(gpu) => println!("\nopened {}", gpu.name()),
        Err(error) => println!("\nopened nothing: {error}"),
    }
}

#[test]
fn environment_variables_choose_the_adapter() {
    let adapters = Gpu::adapters_blocking();
    assert!(!adapters.is_empty(), "this test needs a GPU adapter");
    for adapter in &adapters {
        let info = adapter.get_info();
        let backend = format!("{:?}", info.backend);
        let opened = opened_with(&[("WGPU_BACKEND", &backend.to_lowercase())]);
        assert!(opened.starts_with(&backend), "{backend}: {opened}");
        // A part of the name, in another case.
        let part: String = info.name.to_uppercase().chars().take(5).collect();
        let opened = opened_with(&[("WGPU_ADAPTER_NAME", &part)]);
        assert!(opened.to_uppercase().contains(&part), "{part}: {opened}");
    }
    for preference in ["low", "high"] {
        let opened = opened_with(&[("WGPU_POWER_PREF", preference)]);
        assert!(!opened.starts_with("nothing"), "{preference}: {opened}");
    }
}

#[test]
fn a_name_that_matches_nothing_is_an_error_that_says_so() {
    let opened = opened_with(&[("WGPU_ADAPTER_NAME", "no such adapter")]);
    assert!(opened.starts_with("nothing"), "{opened}");
    assert!(
        opened.contains("WGPU_ADAPTER_NAME=no such adapter"),
        "{opened}"
    );
    assert!(opened.contains("cpu"), "it names the way out: {opened}");
}
