"""How fast rows go into SQLite, alone and beside a thread that computes, as an event loop does.

    python benchmarks/inserts.py [--seconds 2]

Rows of 300 bytes, 200 a transaction, synchronous=OFF: what is compared is the statements, not the disk.
"""

import argparse
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

ROWS = 200
Row = tuple[int, int, int, str]


def executemany(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", rows)


def one_statement(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    places = ",".join(["(?,?,?,?)"] * len(rows))
    connection.execute(f"INSERT INTO event VALUES {places}", list(chain.from_iterable(rows)))


def json_each(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    connection.execute(
        "INSERT INTO event SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)",
        (json.dumps(rows),),
    )


def rows_per_second(insert: Callable[[sqlite3.Connection, Sequence[Row]], None], seconds: float) -> float:
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "rows.db"))
        connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;"
            "CREATE TABLE event"
            " (position INTEGER PRIMARY KEY, instance INTEGER, sequence INTEGER, data TEXT);"
        )
        count = 0
        begin = time.perf_counter()
        while (elapsed := time.perf_counter() - begin) < seconds:
            insert(connection, [(count + n, 1, count + n, "x" * 300) for n in range(1, ROWS + 1)])
            connection.commit()
            count += ROWS
        connection.close()
        return count / elapsed


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=2)
    seconds = arguments.parse_args().seconds
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(100))

    print(f"{'rows/s':14}{'alone':>12}{'beside a busy thread':>24}")
    for insert in (executemany, one_statement, json_each):
        alone = rows_per_second(insert, seconds)
        stop.clear()
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            beside = rows_per_second(insert, seconds)
        finally:
            stop.set()
            thread.join()
        print(f"{insert.__name__:14}{alone:12,.0f}{beside:24,.0f}")


if __name__ == "__main__":
    main()
