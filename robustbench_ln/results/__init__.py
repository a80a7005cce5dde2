"""Keeping results: the run folder with its finished rows, and the `results.json` document made from them."""

from robustbench_ln.files import write_bytes, writing
from robustbench_ln.results.document import (
    DocumentRow,
    ResultsDocument,
    RunInfo,
    dump_document,
    json_schema,
    load_document,
    shards_missing,
)
from robustbench_ln.results.results import Results, Scored, collect, load_results, save
from robustbench_ln.results.store import (
    Cell,
    FolderRun,
    Manifest,
    MemoryRun,
    Run,
    cell_file,
    is_part,
    open_run,
    read_manifest,
    row_key,
)

__all__ = [
    "Cell",
    "DocumentRow",
    "FolderRun",
    "Manifest",
    "MemoryRun",
    "Results",
    "ResultsDocument",
    "Run",
    "RunInfo",
    "Scored",
    "cell_file",
    "collect",
    "dump_document",
    "is_part",
    "json_schema",
    "load_document",
    "load_results",
    "open_run",
    "read_manifest",
    "row_key",
    "save",
    "shards_missing",
    "write_bytes",
    "writing",
]
