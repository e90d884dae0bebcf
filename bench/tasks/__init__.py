"""The tasks, one module each. This table imports nothing, so that listing names costs nothing."""

TASKS: dict[str, str] = {
    "facts": "bench.tasks.facts.task:Facts",
    "word_problems": "bench.tasks.word_problems.task:WordProblems",
    "requests": "bench.tasks.requests.task:Requests",
    "e2e": "bench.tasks.e2e:E2E",
    "webnlg": "bench.tasks.webnlg:WebNLG",
    "dart": "bench.tasks.dart:Dart",
    "metamath": "bench.tasks.metamath:MetaMath",
    "jsonl": "bench.tasks.jsonl:JsonLines",
    "chat": "bench.tasks.chat:Chat",
    "csv": "bench.tasks.tables:Csv",
    "parquet": "bench.tasks.tables:Parquet",
    "hub": "bench.tasks.hub:Hub",
}
