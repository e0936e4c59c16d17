//! `function build`, with the cargo of this machine and with the ones of others.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use super::fixture::{Ended, Folder};

const FUNCTION: &str =
    r#"{"id": "tiny", "function_type": "RUST_WASM", "version": "0.1", "outputs": [], "build": "./Cargo.toml"}"#;
const MANIFEST: &str = "[package]\nname = \"tiny\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
     [lib]\ncrate-type = [\"cdylib\"]\n";
const SOURCE: &str = "#[unsafe(no_mangle)]\npub extern \"C\" fn one() -> i32 {\n    1\n}\n";

fn crate_in_folder() -> Folder {
    Folder::new()
        .with("functions/tiny/function.json", FUNCTION)
        .with("functions/tiny/Cargo.toml", MANIFEST)
        .with("functions/tiny/src/lib.rs", SOURCE)
}

const BUILD: &str = "function build functions/tiny/function.json";

/// Without the seconds that it took.
fn steady(ended: Ended) -> Ended {
    let words = |line: &str| match line.split_once(" in ") {
        Some((built, rest)) => format!("{built} in T s{}", &rest[rest.find(':').unwrap()..]),
        None => line.to_string(),
    };
    Ended { stderr: ended.stderr.lines().map(|line| words(line) + "\n").collect(), ..ended }
}

#[test]
fn a_function_is_built_and_built_again_only_when_it_changed() {
    let folder = crate_in_folder();
    let size = |folder: &Folder| fs::metadata(folder.path("functions/tiny/tiny.wasm")).unwrap().len().div_ceil(1024);

    let ended = steady(folder.run(BUILD));
    let built = format!("building tiny\nbuilt tiny in T s: {} KiB\n", size(&folder));
    ended.is(0, "functions/tiny/tiny.wasm\n", &built);
    let module = fs::read(folder.path("functions/tiny/tiny.wasm")).unwrap();
    assert!(module.starts_with(b"\0asm"));
    assert!(folder.path("functions/target").is_dir(), "functions share one target folder");
    let files: Vec<_> = fs::read_dir(folder.path("functions/tiny")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files.len(), 5, "function.json, Cargo.toml, Cargo.lock, src and the module: {files:?}");

    folder.run(BUILD).is(0, "functions/tiny/tiny.wasm\n", "tiny is up to date\n");
    folder.run("function build functions/tiny").is(0, "functions/tiny/tiny.wasm\n", "tiny is up to date\n");
    steady(folder.run(&format!("{BUILD} --force"))).is(0, "functions/tiny/tiny.wasm\n", &built);

    folder.write("functions/tiny/src/lib.rs", SOURCE.replace("one", "another"));
    steady(folder.run(BUILD)).is(0, "functions/tiny/tiny.wasm\n", &built);
    assert_ne!(fs::read(folder.path("functions/tiny/tiny.wasm")).unwrap(), module);
}

#[test]
fn errors_of_the_compiler_are_shown_whole() {
    let folder = crate_in_folder().with("functions/tiny/src/lib.rs", "pub fn broken() -> i32 {\n    \"text\"\n}\n");
    let ended = folder.run(BUILD);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    for part in ["error[E0308]: mismatched types", "src/lib.rs:2:5", "error: cannot build tiny: cargo says why above\n"]
    {
        assert!(ended.stderr.contains(part), "{part} is not in {}", ended.stderr);
    }
    assert!(!folder.path("functions/tiny/tiny.wasm").exists());
}

#[test]
fn a_crate_that_makes_no_module_is_told_what_it_lacks() {
    let folder = crate_in_folder().with("functions/tiny/Cargo.toml", MANIFEST.replace("cdylib", "rlib"));
    let manifest = fs::canonicalize(folder.path("functions/tiny/Cargo.toml")).unwrap();
    folder.run(BUILD).fails(
        1,
        &format!(
            "building tiny\nerror: {} makes no WebAssembly module: put crate-type = [\"cdylib\"] below [lib]\n",
            manifest.display()
        ),
    );
}

#[test]
fn bad_function_files_are_refused_with_their_place() {
    for (function, code, expected) in [
        ("{", 2, "functions/tiny/function.json:1:1: this is not JSON: EOF while parsing an object"),
        (
            r#"{"id": "tiny", "function_type": "RUST_WASM", "version": "0.1"}"#,
            2,
            "functions/tiny/function.json:1:62: missing field 'outputs'",
        ),
        (
            r#"{"id": "../x", "function_type": "RUST_WASM", "version": "0.1", "outputs": []}"#,
            2,
            "functions/tiny/function.json: id: '../x' cannot be the name of a file",
        ),
        (
            r#"{"id": "tiny", "function_type": "RUST_WASM", "version": "0.1", "outputs": [], "build": "x.toml"}"#,
            2,
            "functions/tiny/function.json: build: there is no file functions/tiny/x.toml",
        ),
        (
            r#"{"id": "tiny", "function_type": "PYTHON", "version": "0.1", "outputs": []}"#,
            1,
            "functions/tiny/function.json: function_type: PYTHON cannot be built: RUST_WASM, CONTAINER and SERVICE can",
        ),
    ] {
        let folder = crate_in_folder().with("functions/tiny/function.json", function);
        folder.run(BUILD).fails(code, &format!("error: {expected}\n"));
    }
    Folder::new().run("function build f.json").fails(2, "error: cannot read f.json: no such file or directory\n");
}

/// A folder of programs that stand for what is installed on another machine.
fn tools(folder: &Folder, scripts: &[(&str, &str)]) {
    for (name, script) in scripts {
        folder.write(&format!("bin/{name}"), format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(folder.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn run_with(folder: &Folder, path: &Path) -> Ended {
    let mut command = folder.program(BUILD.split_whitespace());
    command.env("PATH", path);
    Ended::of(command)
}

const INSTALL_RUST: &str = "  https://rustup.rs installs Rust; then: rustup target add wasm32-unknown-unknown
  on Debian, without rustup: apt install rustc-web cargo-web rust-web-src rust-web-llvm,
  and the lld that /usr/bin/rust-lld then leads to (lld-22, for example)
";

#[test]
fn what_is_missing_is_told_with_how_to_install_it() {
    let folder = crate_in_folder();
    tools(&folder, &[]);
    let no_rust = format!("building tiny\nerror: rustc is not installed\n{INSTALL_RUST}");
    run_with(&folder, &folder.path("bin")).fails(1, &no_rust);

    tools(&folder, &[("rustc", &format!("echo {}", folder.path("sysroot").display()))]);
    let ended = run_with(&folder, &folder.path("bin"));
    assert_eq!((ended.code, ended.stdout.as_str()), (1, ""));
    assert!(
        ended.stderr.starts_with(
            "building tiny\nerror: the Rust target wasm32-unknown-unknown is not installed\n  with rustup: rustup target \
             add wasm32-unknown-unknown\n  on Debian, without rustup: apt install rustc-web cargo-web rust-web-src \
             rust-web-llvm,\n"
        ),
        "{}",
        ended.stderr
    );

    folder.write("sysroot/lib/rustlib/wasm32-unknown-unknown/lib/libstd.rlib", "");
    let no_cargo = no_rust.replace("rustc is", "cargo is");
    run_with(&folder, &folder.path("bin")).fails(1, &no_cargo);
}

#[test]
fn a_container_needs_a_target_of_its_own() {
    let folder = crate_in_folder();
    // The source of the standard library does not help: a C library is needed too.
    folder.write("sysroot/lib/rustlib/src/rust/library/Cargo.lock", "");
    tools(&folder, &[("rustc", &format!("echo {}", folder.path("sysroot").display()))]);
    let mut command = folder.program(["function", "build", "--container", "functions/tiny"]);
    command.env("PATH", folder.path("bin"));
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    Ended::of(command).fails(
        1,
        &format!(
            "building tiny\nerror: the Rust target {target} is not installed\n  with rustup: rustup target add {target}\n"
        ),
    );
}

/// `None`: containers cannot be built on this machine, which is said, or a failure if it is required.
fn musl() -> Option<String> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap().stdout;
    let sysroot = PathBuf::from(String::from_utf8(sysroot).unwrap().trim());
    if sysroot.join("lib/rustlib").join(&target).is_dir() {
        return Some(target);
    }
    let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == "musl"), "the target {target} is required and not installed");
    let test = std::thread::current().name().unwrap_or_default().to_string();
    // Not by a macro, whose output would be captured.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: musl: {test}: the target {target} is not installed").unwrap();
    None
}

/// The SDK is stood in for, since it takes minutes to compile; its own test tries what it makes.
#[test]
fn a_function_is_built_as_the_image_of_a_container_as_it_stands() {
    if musl().is_none() {
        return;
    }
    const SDK: &str = "[package]\nname = \"edgeless_function\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n\
         [features]\ncontainer = []\n";
    const EXPORT: &str = "#[cfg(feature = \"container\")]\n#[macro_export]\nmacro_rules! export {\n    \
         () => { pub fn main() { println!(\"served\") } };\n}\n\
         #[cfg(not(feature = \"container\"))]\n#[macro_export]\nmacro_rules! export {\n    () => {};\n}\n";
    let folder = crate_in_folder()
        .with("sdk/Cargo.toml", SDK)
        .with("sdk/src/lib.rs", EXPORT)
        .with(
            "functions/tiny/Cargo.toml",
            format!(
                "{MANIFEST}\n[features]\nextra = []\n\n[dependencies]\nedgeless_function = {{ path = \"../../sdk\" }}\n"
            ),
        )
        .with(
            "functions/tiny/src/lib.rs",
            "#[cfg(not(feature = \"extra\"))]\ncompile_error!(\"features\");\nedgeless_function::export!();\n",
        );
    let build = |arguments: &str| folder.run(&format!("function build {arguments}"));
    let archive = || fs::read(folder.path("functions/tiny/tiny.tar")).unwrap();

    let ended = steady(build("--container functions/tiny"));
    let size = archive().len().div_ceil(1024);
    let built = format!("building tiny\nbuilt the image tiny:0.1 in T s: {size} KiB\n");
    ended.is(0, "functions/tiny/tiny.tar\n", &built);
    let first = archive();
    build("--container functions/tiny/function.json").is(0, "functions/tiny/tiny.tar\n", "tiny is up to date\n");
    folder.write("functions/tiny/function.json", FUNCTION.replace("RUST_WASM", "CONTAINER"));
    steady(build("functions/tiny")).is(0, "functions/tiny/tiny.tar\n", &built);
    assert_eq!(archive(), first, "what has not changed is the same to the byte");

    let executable = file_in(&file_in(&first, "layer.tar"), "function");
    fs::write(folder.path("run"), executable).unwrap();
    fs::set_permissions(folder.path("run"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(folder.path("run")).env_clear().stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "served\n");

    folder.write("functions/tiny/function.json", FUNCTION);
    steady(build("functions/tiny")).is(0, "functions/tiny/tiny.wasm\n", &{
        let size = fs::metadata(folder.path("functions/tiny/tiny.wasm")).unwrap().len().div_ceil(1024);
        format!("building tiny\nbuilt tiny in T s: {size} KiB\n")
    });
}

#[test]
fn any_program_is_built_as_the_image_of_a_service() {
    if musl().is_none() {
        return;
    }
    const PROGRAM: &str = "[package]\nname = \"server\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let folder = Folder::new()
        .with("server/function.json", FUNCTION.replace("RUST_WASM", "SERVICE"))
        .with("server/Cargo.toml", PROGRAM)
        .with("server/src/main.rs", "fn main() { println!(\"served\") }\n");
    let ended = steady(folder.run("function build server"));
    let archive = fs::read(folder.path("server/tiny.tar")).unwrap();
    let size = archive.len().div_ceil(1024);
    ended.is(0, "server/tiny.tar\n", &format!("building tiny\nbuilt the image tiny:0.1 in T s: {size} KiB\n"));
    assert!(file_in(&file_in(&archive, "layer.tar"), "service").starts_with(b"\x7fELF"));

    folder.write("server/src/lib.rs", "");
    fs::remove_file(folder.path("server/src/main.rs")).unwrap();
    let ended = folder.run("function build server");
    let manifest = fs::canonicalize(folder.path("server/Cargo.toml")).unwrap();
    let reason = "makes no program: give it a src/main.rs";
    ended.fails(1, &format!("building tiny\nerror: {} {reason}\n", manifest.display()));
}

fn file_in(archive: &[u8], name: &str) -> Vec<u8> {
    let mut archive = tar::Archive::new(archive);
    let mut files = archive.entries().unwrap().map(Result::unwrap);
    let mut file = files.find(|file| file.path().unwrap() == Path::new(name)).unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    content
}

/// As on Debian without rustup.
#[test]
fn the_standard_library_is_built_where_only_its_source_is() {
    let folder = crate_in_folder().with("sysroot/lib/rustlib/src/rust/library/Cargo.lock", "");
    let (root, crate_folder) = (folder.path("."), fs::canonicalize(folder.path("functions/tiny")).unwrap());
    let cargo = format!(
        "case $1 in\n\
         metadata) echo '{{\"target_directory\": \"{0}/target\"}}' ;;\n\
         build) echo \"$RUSTC_BOOTSTRAP $@\" > {1}/asked; printf '\\0asm' > {1}/made.wasm\n\
         echo '{{\"reason\": \"compiler-artifact\", \"manifest_path\": \"{0}/Cargo.toml\", \"filenames\": \
         [\"{1}/made.wasm\"], \"target\": {{\"crate_types\": [\"cdylib\"]}}}}' ;;\n\
         esac",
        crate_folder.display(),
        root.display(),
    );
    let sysroot = format!("echo {}", folder.path("sysroot").display());
    tools(&folder, &[("rustc", &sysroot), ("cargo", &cargo)]);
    let ended = steady(run_with(&folder, &folder.path("bin")));
    ended.is(0, "functions/tiny/tiny.wasm\n", "building tiny\nbuilt tiny in T s: 1 KiB\n");
    let asked = folder.read("asked");
    assert!(asked.starts_with("1 build --release"), "{asked}");
    assert!(asked.contains(" -Z build-std=std,panic_abort "), "{asked}");
}

#[test]
fn wasm_opt_is_used_where_it_is_installed() {
    let folder = crate_in_folder();
    let tools_path = |folder: &Folder| {
        let path = std::env::var_os("PATH").unwrap();
        std::env::join_paths([folder.path("bin")].into_iter().chain(std::env::split_paths(&path))).unwrap()
    };
    let run = |folder: &Folder| steady(run_with(folder, Path::new(&tools_path(folder))));
    tools(&folder, &[("wasm-opt", "printf '\\0asmsmall' > \"$6\"; echo \"$1 $2 $3\" > asked")]);
    run(&folder).is(0, "functions/tiny/tiny.wasm\n", "building tiny\nbuilt tiny in T s: 1 KiB\n");
    assert_eq!(fs::read(folder.path("functions/tiny/tiny.wasm")).unwrap(), b"\0asmsmall");
    assert_eq!(folder.read("asked"), "-Oz --all-features --debuginfo\n");

    tools(&folder, &[("wasm-opt", "echo unknown feature >&2; exit 1")]);
    fs::File::open(folder.path("functions/tiny/src/lib.rs")).unwrap().set_modified(SystemTime::now()).unwrap();
    let ended = run(&folder);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "functions/tiny/tiny.wasm\n"));
    let warning = "warning: functions/tiny/tiny.wasm is not optimised: wasm-opt failed: unknown feature\n";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    assert!(fs::read(folder.path("functions/tiny/tiny.wasm")).unwrap().len() > 9, "the module of cargo is used");
}
