"""Runs the files of deploy/clickhouse in an engine of this process. What needs a broker is replaced: the table flows_queue takes
rows by INSERT and hands them to its materialised views, as the engine Kafka does."""
import os, re, shutil
from chdb.session import Session

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KAFKA = re.compile(r"\)\nENGINE = Kafka\nSETTINGS [^;]*;")
# Like the virtual columns of the engine, materialised ones are not among *.
VIRTUAL = """, _topic LowCardinality(String) MATERIALIZED '', _partition UInt64 MATERIALIZED 0, _offset UInt64 MATERIALIZED 0,
    _error String MATERIALIZED '', _raw_message String MATERIALIZED '')
ENGINE = Null;"""


def statements(text):
    text = re.sub(r"(?m)^\s*--.*$", "", text)
    text = re.sub(r"(?m) -- [^'\n]*$", "", text)
    return [s.strip() for s in text.split(";\n") if s.strip()]


def read(name):
    return open(os.path.join(HERE, name), encoding="utf-8").read()


class Tables:
    def __init__(self, dir, archive=None):
        shutil.rmtree(dir, ignore_errors=True)
        self.session = Session(dir)
        self.run("CREATE DATABASE ctlogd")
        self.run("USE ctlogd")
        for name in ("tables.sql", "kafka.sql", "views.sql", "archive.sql"):
            text = read(name)
            if name == "kafka.sql":
                text, n = KAFKA.subn(VIRTUAL, text)
                assert n == 1, n
            if name == "archive.sql":
                if archive is None:
                    continue
                text = text.replace("/var/log/ctlogd/archive", archive)
            for s in statements(text):
                self.run(s)
        for table in ("flows", "gaps", "checkpoints", "coverage"):  # the tests' records are old
            self.run(f"ALTER TABLE {table} REMOVE TTL")

    def run(self, sql, form="TSV"):
        return str(self.session.query(sql, form))

    def rows(self, sql):
        """rows as dictionaries, integers exact."""
        import json
        out = self.run(sql + " SETTINGS output_format_json_quote_64bit_integers = 0", "JSONEachRow")
        return [json.loads(line) for line in out.splitlines()]

    def one(self, sql):
        return self.run(sql, "TSVRaw").rstrip("\n")

    def queue(self, path):
        """What the consumer does with a file of messages."""
        self.run(f"INSERT INTO flows_queue SELECT * FROM file('{path}', JSONEachRow) SETTINGS {QUEUE}")


QUEUE = "date_time_input_format = 'best_effort', input_format_skip_unknown_fields = 1"
