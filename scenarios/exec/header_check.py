"""For `killpoint watch`: commits, and with the argument `check` opens, reads and closes the database
file after each commit, as the application of the production report did. That close drops the locks
that SQLite holds in this process.

    killpoint watch -- python3 scenarios/exec/header_check.py checked.db check
"""

import os
import sqlite3
import sys

path, check = sys.argv[1], sys.argv[2:] == ["check"]
conn = sqlite3.connect(path, isolation_level=None)
conn.execute("PRAGMA journal_mode = WAL")
conn.execute("PRAGMA synchronous = FULL")
conn.execute("CREATE TABLE IF NOT EXISTS entry (number INTEGER)")
for number in range(int(os.environ.get("COMMITS", "20"))):
    conn.execute("INSERT INTO entry VALUES (?)", (number,))
    if check:
        with open(path, "rb") as database:
            assert database.read(16) == b"SQLite format 3\0"
conn.close()
