"""Keeping results: the run folder with its finished rows, and the `results.json` document made from them."""

from robustbench_ln.results.document import (
    DocumentRow,
    ResultsDocument,
    RunInfo,
    dump_document,
    json_schema,
    load_document,
)
from robustbench_ln.results.files import write_bytes, writing
from robustbench_ln.results.results import Results, Scored, collect, load_results, save
from robustbench_ln.results.store import Cell, FolderRun, Manifest, MemoryRun, Run, open_run, row_key

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
    "collect",
    "dump_document",
    "json_schema",
    "load_document",
    "load_results",
    "open_run",
    "row_key",
    "save",
    "write_bytes",
    "writing",
]
