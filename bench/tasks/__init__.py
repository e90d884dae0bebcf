"""The tasks, one module each. This table imports nothing, so that listing names costs nothing."""

TASKS: dict[str, str] = {
    "facts": "bench.tasks.facts.task:Facts",
    "e2e": "bench.tasks.e2e:E2E",
    "webnlg": "bench.tasks.webnlg:WebNLG",
    "dart": "bench.tasks.dart:Dart",
    "jsonl": "bench.tasks.jsonl:JsonLines",
    "csv": "bench.tasks.tables:Csv",
    "parquet": "bench.tasks.tables:Parquet",
    "hub": "bench.tasks.hub:Hub",
}
