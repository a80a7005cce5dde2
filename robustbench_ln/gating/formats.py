"""How a decision is shown: a format is a function and a row of `FORMATS`. Worst first in all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from robustbench_ln.gating.decide import Check, Decision
from robustbench_ln.reports import markdown
from robustbench_ln.reports.markdown import escape
from robustbench_ln.reports.text import between, p_value, percent, visible

SCHEMA_VERSION = 1
_HEADER = ("verdict", "rule", "model", "mode", "old", "new", "drop", "95 % interval", "allowed", "p", "would find")
_NAMES = 4  # columns that hold names


def text(decision: Decision) -> str:
    """For people: a line a check, and how it was tested below."""
    from tabulate import tabulate

    lines = [headline(decision), ""]
    if decision.checks:
        cells = [[visible(cell) for cell in _cells(check)] for check in decision.checks]
        align = ("left",) * _NAMES + ("right",) * (len(_HEADER) - _NAMES)
        lines += [
            tabulate(cells, _HEADER, tablefmt="simple", disable_numparse=True, colalign=align),
            "",
            *_notes(decision),
        ]
    lines += [f"warning: {visible(warning)}" for warning in decision.warnings]
    return "\n".join(lines).rstrip() + "\n"


def as_json(decision: Decision) -> str:
    """For programs: everything, fractions and not percent."""
    problem = decision.problem
    document = {
        "schema_version": SCHEMA_VERSION,
        "verdict": decision.verdict,
        "exit_code": decision.exit_code,
        "policy": decision.policy.file or None,
        "inconclusive": decision.policy.inconclusive,
        "reason": None if problem is None else {"what": problem.what, "found": problem.found, "try": problem.hint},
        "rules": [_check_json(check) for check in decision.checks],
        "warnings": list(decision.warnings),
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def junit(decision: Decision) -> str:
    """For test reports: a test case a check; inconclusive ones fail where the policy says so."""
    suite = ElementTree.Element("testsuite", name="lnbench gate")
    for check in decision.checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname=visible(f"{check.model}.{check.mode}"), name=visible(check.rule.name)
        )
        if check.verdict == "fail":
            ElementTree.SubElement(case, "failure", message=sentence(check), type="regression").text = _details(check)
        elif check.verdict == "inconclusive":
            kind = "failure" if decision.policy.inconclusive == "fail" else "skipped"
            ElementTree.SubElement(case, kind, message=sentence(check), type="inconclusive").text = _details(check)
    if decision.problem is not None:
        case = ElementTree.SubElement(suite, "testcase", classname="lnbench.gate", name="comparable")
        ElementTree.SubElement(case, "error", message=_reason(decision), type=decision.verdict)
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(suite)))
    if decision.warnings:
        ElementTree.SubElement(suite, "system-err").text = "\n".join(map(visible, decision.warnings))
    ElementTree.indent(suite)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(suite, encoding="unicode")}\n'


def github(decision: Decision) -> str:
    """For a GitHub job's log: annotations, then the text. See :func:`github_summary` for the step summary."""
    lines = []
    for check in decision.checks:
        level = {"fail": "error", "inconclusive": "error" if decision.exit_code else "warning"}.get(check.verdict)
        if level:
            lines.append(_annotation(level, f"lnbench gate: {check.rule.name}", sentence(check), decision, check))
    if decision.problem is not None:
        lines.append(_annotation("error", "lnbench gate: incomparable", _reason(decision), decision))
    lines += [_annotation("warning", "lnbench gate", visible(warning), decision) for warning in decision.warnings]
    return "\n".join([*lines, text(decision)])


def github_summary(decision: Decision) -> str:
    """Markdown for the step summary."""
    icon = {"pass": "✅", "fail": "❌"}.get(decision.verdict, "⚠️")
    parts = [f"### {icon} {escape(headline(decision))}\n\n"]
    if decision.checks:
        parts.append(markdown.grid(_HEADER, map(_cells, decision.checks), names=_NAMES))
        parts += ["\n\n", *(f"{escape(note)}  \n" for note in _notes(decision))]
    parts += [f"\n> **warning** {escape(warning)}\n" for warning in decision.warnings]
    return "".join(parts)


def github_outputs(decision: Decision) -> str:
    """Lines for GITHUB_OUTPUT: words and numbers of ours only."""
    failed = sum(check.verdict == "fail" for check in decision.checks)
    values = {"verdict": decision.verdict, "exit-code": decision.exit_code, "failed": failed}
    return "".join(f"{key}={value}\n" for key, value in values.items())


def gitlab(decision: Decision) -> str:
    """For GitLab's code quality report: an issue for everything that is not a pass."""
    issues = []
    for check in decision.checks:
        if check.verdict != "pass":
            severity = "critical" if check.verdict == "fail" else "minor"
            parts = (check.rule.name, check.rule.metric, check.model, check.mode, check.about)
            issues.append(_issue(decision, sentence(check), check.verdict, severity, parts, check.rule.line))
    if decision.problem is not None:
        issues.append(_issue(decision, _reason(decision), "incomparable", "blocker", ("incomparable",), 1))
    return json.dumps(issues, indent=1) + "\n"


FORMATS: dict[str, Callable[[Decision], str]] = {
    "text": text,
    "json": as_json,
    "junit": junit,
    "github": github,
    "gitlab": gitlab,
}


def headline(decision: Decision) -> str:
    """The verdict in a line."""
    if decision.problem is not None:
        return f"INCOMPARABLE: {_reason(decision)}"
    counts = {verdict: sum(one.verdict == verdict for one in decision.checks) for verdict in ("fail", "inconclusive")}
    total = f"{len(decision.checks)} check{'s' if len(decision.checks) > 1 else ''}"
    found = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) or "none fails"
    return f"{decision.verdict.upper()}: of {total}, {found}"


def sentence(check: Check) -> str:
    """A check in a line."""
    rule = check.rule
    name = visible(f"{rule.name} of {check.model}, {check.mode}")
    interval = between(*check.interval, digits=2)
    if rule.bound == "max_drop":
        said = {
            "fail": "worse than allowed",
            "pass": "within what is allowed" if rule.kind == "noninferiority" else "not shown to be worse than allowed",
        }.get(check.verdict, "neither shown to be within what is allowed nor beyond it")
        values = f"{percent(check.old)} to {percent(check.new)}, drop {percent(check.drop)} {interval}"
        return f"{name}: {said}: {values}, allowed {percent(rule.limit)} points, p = {p_value(check.p_adjusted)}"
    said = {"fail": "beyond its bound", "pass": "not shown to be beyond its bound"}.get(check.verdict, "undecided")
    values = f"{percent(check.new)} {interval}"
    return f"{name}: {said}: {values}, {rule.bound} {percent(rule.limit)}, p = {p_value(check.p_adjusted)}"


def _cells(check: Check) -> tuple[str, ...]:
    rule = check.rule
    allowed = percent(rule.limit) if rule.bound == "max_drop" else f"{rule.bound} {percent(rule.limit)}"
    return (
        check.verdict,
        rule.name,
        check.model,
        check.mode,
        percent(check.old),
        percent(check.new),
        percent(check.drop, sign=True),
        between(*check.interval, digits=2),
        allowed,
        p_value(check.p_adjusted),
        percent(check.detectable),
    )


def _notes(decision: Decision) -> list[str]:
    notes = [
        "Values in %, drops in points (positive is worse). p: one-sided, adjusted over all rules (Holm).",
        "would find: the smallest drop that would have been found with a power of 80 %.",
    ]
    notes += [f"{check.rule.name}: {_how(check)}" for check in decision.checks]
    return [visible(note) for note in dict.fromkeys(notes)]


def _how(check: Check) -> str:
    paired = "paired" if check.paired else "unpaired" if check.rule.bound == "max_drop" else "absolute"
    kind = "" if check.rule.kind == "regression" else f", {check.rule.kind}"
    return f"{check.about}, {check.n} images, {paired}; {check.method}, alpha {check.rule.alpha:g}{kind}"


def _details(check: Check) -> str:
    counts = "" if check.lost is None else f"; {check.lost} images lost, {check.gained} gained"
    return visible(f"{_how(check)}{counts}")


def _reason(decision: Decision) -> str:
    assert decision.problem is not None
    return visible(f"{decision.problem.what} ({decision.problem.found})")


def _check_json(check: Check) -> dict[str, Any]:
    rule = check.rule
    return {
        "rule": rule.name,
        "metric": rule.metric,
        "model": check.model,
        "mode": check.mode,
        "verdict": check.verdict,
        "kind": rule.kind,
        "bound": rule.bound,
        "limit": rule.limit,
        "alpha": rule.alpha,
        "old": check.old,
        "new": check.new,
        "drop": check.drop,
        "ci95": list(check.interval),
        "p": check.p,
        "p_adjusted": check.p_adjusted,
        "p_kept": check.p_kept,
        "detectable_drop": check.detectable,
        "method": check.method,
        "paired": check.paired,
        "n": check.n,
        "conditions": check.conditions,
        "about": check.about,
        "lost": check.lost,
        "gained": check.gained,
        "line": rule.line,
    }


def _annotation(level: str, title: str, message: str, decision: Decision, check: Check | None = None) -> str:
    """A workflow command; what could end it, or begin another one, is spelled in GitHub's own way."""
    properties = {"title": title}
    if decision.policy.file:
        properties |= {"file": decision.policy.file, "line": str(check.rule.line if check else 1)}
    escaped = {key: _github(value).replace(":", "%3A").replace(",", "%2C") for key, value in properties.items()}
    return f"::{level} {','.join(f'{key}={value}' for key, value in escaped.items())}::{_github(message)}"


def _github(text: str) -> str:
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _issue(
    decision: Decision, description: str, name: str, severity: str, parts: tuple[str, ...], line: int
) -> dict[str, Any]:
    return {
        "description": description,
        "check_name": f"lnbench-gate-{name}",
        "fingerprint": hashlib.sha256("\0".join(parts).encode()).hexdigest(),
        "severity": severity,
        "location": {"path": decision.policy.file or "lnbench gate", "lines": {"begin": line}},
    }
