//! A Postgres server of a test's own: its own folder, its own port, killed and started again at will.
//!
//! Uses the installed server binaries. The server refuses to run as root, so that a test that does runs it as the user
//! `postgres`, or `nobody` where there is none.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server, with an empty database `tollgate` on it. Stopped and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    folder: tempfile::TempDir,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// Starts a server. `settings`: lines for its configuration, such as `fsync = off`.
    ///
    /// # Panics
    /// No server binaries are installed, or the server does not start; its log is shown.
    pub fn start(settings: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("tollgate-pg-").tempdir().unwrap();
        if is_root() {
            let owner = format!("{}:", user());
            run(Command::new("chown").arg(owner).arg(folder.path()));
        }
        let data = folder.path().join("data");
        run(as_user(&binary("initdb"))
            .args([
                "--auth=trust",
                "--username=tollgate",
                "--encoding=UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(&data));
        let configuration = data.join("postgresql.conf");
        let mut text = std::fs::read_to_string(&configuration).unwrap();
        text.push_str("\nunix_socket_directories = ''\nmax_connections = 100\n");
        settings
            .iter()
            .for_each(|line| text.push_str(&format!("{line}\n")));
        std::fs::write(&configuration, text).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut postgres = Self {
            folder,
            port,
            server: None,
        };
        postgres.start_again();
        run(Command::new(binary("createdb"))
            .args(["-h", "127.0.0.1", "-U", "tollgate", "-p"])
            .arg(port.to_string())
            .arg("tollgate"));
        postgres
    }

    /// Where to connect.
    pub fn url(&self) -> String {
        self.url_of("tollgate")
    }

    /// An empty database of this name.
    pub fn create(&self, name: &str) -> String {
        self.query("postgres", &format!("CREATE DATABASE {name}"));
        self.url_of(name)
    }

    fn url_of(&self, name: &str) -> String {
        format!("postgres://tollgate@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs SQL; returns the rows as text, columns separated by `|`.
    pub fn query(&self, database: &str, sql: &str) -> String {
        let url = self.url_of(database);
        let out = Command::new(binary("psql"))
            .args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql, &url])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    }

    /// Kills the server at once, as a crash would: what it had not committed is gone.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Immediate shutdown: the postmaster ends its children too, without a checkpoint.
            run(Command::new("kill").args(["-QUIT", &server.id().to_string()]));
            server.wait().unwrap();
        }
    }

    /// Starts it after a kill, on the same port and folder.
    pub fn start_again(&mut self) {
        let log = std::fs::File::create(self.log()).unwrap();
        let child = as_user(&binary("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(child);
        let until = Instant::now() + Duration::from_secs(60);
        while !self.is_ready() {
            assert!(
                Instant::now() < until,
                "Postgres did not start:\n{}",
                self.read_log()
            );
            let ended = self.server.as_mut().and_then(|server| server.try_wait().unwrap());
            assert!(ended.is_none(), "Postgres ended:\n{}", self.read_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn is_ready(&self) -> bool {
        let port = self.port.to_string();
        let mut ready = Command::new(binary("pg_isready"));
        ready
            .args(["-q", "-h", "127.0.0.1", "-U", "tollgate", "-p", &port])
            .status()
            .is_ok_and(|status| status.success())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn read_log(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kill();
        } else if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill")
                .args(["-QUIT", &server.id().to_string()])
                .status();
            let _ = server.wait();
        }
    }
}

/// A server binary: on the path, or where Debian keeps them.
fn binary(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(name));
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut installed: Vec<PathBuf> = versions
        .map(|version| version.path().join("bin").join(name))
        .collect();
    installed.sort();
    let found = installed
        .into_iter()
        .rev()
        .chain(on_path)
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is not installed; `apt-get install postgresql` has it"))
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

fn user() -> &'static str {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if users.lines().any(|line| line.starts_with("postgres:")) {
        "postgres"
    } else {
        "nobody"
    }
}

fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", user(), "--regid", user_group(), "--clear-groups", "--"])
        .arg(program);
    command
}

fn user_group() -> &'static str {
    if user() == "postgres" {
        "postgres"
    } else {
        "nogroup"
    }
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}
