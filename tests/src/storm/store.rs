//! The store under the storm: a Postgres server that can be killed and started, or one SQLite file.

use crate::postgres::Postgres;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the nodes share.
pub enum Store {
    Postgres(Box<Postgres>),
    Sqlite(PathBuf),
}

impl Store {
    /// Rows of a query as texts.
    pub fn rows(&self, sql: &str) -> Vec<Vec<String>> {
        let text = match self {
            Self::Postgres(server) => server.query("tollgate", sql),
            Self::Sqlite(path) => sqlite(path, sql),
        };
        let cells = |line: &str| line.split('|').map(str::to_owned).collect();
        text.lines().map(cells).collect()
    }

    /// Stops it at once and lets go; SQLite has no server to stop.
    pub fn stop(&mut self) {
        if let Self::Postgres(server) = self {
            server.kill();
        }
    }

    pub fn start(&mut self) {
        if let Self::Postgres(server) = self {
            server.start_again();
        }
    }

    /// The part of a node's configuration that says where it is.
    pub fn configuration(&self) -> String {
        match self {
            Self::Postgres(_) => "postgres: {url: \"file:../url\", connections: 6}".into(),
            Self::Sqlite(path) => format!("database: {}", path.display()),
        }
    }
}

fn sqlite(path: &Path, sql: &str) -> String {
    let script = "import sqlite3, sys\nfor row in sqlite3.connect(sys.argv[1]).execute(sys.argv[2]):\n    \
                  print('|'.join('' if cell is None else str(cell) for cell in row))";
    let out = Command::new("python3")
        .args(["-c", script])
        .arg(path)
        .arg(sql)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{sql}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}
