"""Writes and checkpoints one database, as any program with its own SQLite does.

Run by scenarios/schedule/python.toml, several copies at once: race.py setup, then race.py.
"""

import os
import random
import sqlite3
import sys


def connect():
    db = sqlite3.connect("race.db", timeout=30, isolation_level=None)
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA wal_autocheckpoint = 4")
    return db


def setup():
    db = connect()
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, token TEXT, body TEXT)")
    db.execute("CREATE INDEX entry_token ON entry (token)")
    db.close()


def work():
    copy = int(os.environ.get("KILLPOINT_COPY", "0"))
    acks = int(os.environ.get("KILLPOINT_ACK_FD", "2"))
    # The operating system's randomness, as a program has it that was not seeded.
    choices = random.Random(os.urandom(8))
    db = connect()
    for number in range(20):
        if choices.randrange(8) < 3:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            continue
        token = f"{copy}-{number}"
        body = "x" * choices.randrange(20, 600)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO entry (token, body) VALUES (?, ?)", (token, body))
        db.execute("COMMIT")
        os.write(acks, f"ack {token}\n".encode())
    db.close()


if __name__ == "__main__":
    setup() if sys.argv[1:] == ["setup"] else work()
