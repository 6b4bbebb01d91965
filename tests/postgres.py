"""A Postgres server of a test's own, from the installed server binaries, which refuse to run as root."""
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time


def binary(name):
    found = shutil.which(name) or max(map(str, pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None)
    assert found, f"{name} of Postgres is not installed"
    return found


def owner():
    """Whom the server runs as: the tests' own user, unless that is root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


class Postgres:
    """Made, and not yet running. Its database is `tollgate`."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tollgate-pg-"))
        self.user = owner()
        if self.user:
            shutil.chown(self.folder, self.user)
        self.data, self.port, self.server = self.folder / "data", free_port(), None
        command = [binary("initdb"), "--auth=trust", "--username=tollgate", "--encoding=UTF8", "--no-sync", "-D", self.data]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL)
        with open(self.data / "postgresql.conf", "a") as settings:
            settings.write("\nunix_socket_directories = ''\nfsync = off\n")
        self.start()
        self.sql("CREATE DATABASE tollgate", database="postgres")
        self.stop()

    def url(self, database="tollgate"):
        return f"postgres://tollgate@127.0.0.1:{self.port}/{database}"

    def start(self):
        command = [binary("postgres"), "-D", self.data, "-h", "127.0.0.1", "-p", str(self.port)]
        self.server = subprocess.Popen(command, user=self.user, cwd=self.folder, stderr=subprocess.DEVNULL)
        ready = [binary("pg_isready"), "-q", "-h", "127.0.0.1", "-U", "tollgate", "-p", str(self.port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode != 0:
            assert self.server.poll() is None and time.monotonic() < deadline, "Postgres did not start"
            time.sleep(0.05)

    def stop(self):
        """At once: nobody is waited for."""
        if self.server:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(60)
            self.server = None

    def sql(self, text, database="tollgate"):
        command = [binary("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", text, self.url(database)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder)
