"""`skilltune init`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from skilltune.cli.boundary import boundary, interrupts, say
from skilltune.cli.options import app
from skilltune.errors import UsageError


def _declared(variable: str) -> str:
    """The name of an environment variable, or "". Raises UsageError if the text may be the key itself."""
    from skilltune.api_keys import declared

    try:
        return declared(variable) if variable else ""
    except ValueError as error:
        raise UsageError(f"--key-env: {error}") from None


@app.command()
def init(
    source: Annotated[
        str, typer.Argument(metavar="DIR|bench:NAME", help="The folder of the skill, or a benchmark.")
    ] = ".",
    into: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="bench:NAME: the folder to write. [default: NAME]", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The skill's name: lower case, digits, hyphens.")] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="What it does and when an agent should use it.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="A sentence that describes a task.")] = None,
    score: Annotated[str | None, typer.Option("--score", help="The scorer of answers, e.g. exact, number.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="The model or agent for the tasks.")] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="The model or agent for the edits.")] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="VARIABLE", help="Environment variable with the optimizer's API key.")
    ] = "",
    document: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Let the optimizer's model draft samples from FILE.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; take the defaults.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="bench:NAME: your own copy of its data.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite config and samples; never a SKILL.md.")] = False,
) -> None:
    """Start a skill: write SKILL.md, five example tasks to replace, and a commented config.

    The command asks for everything that no option states. An existing SKILL.md or evals/evals.json is never changed,
    not even with --force; delete it first to start from the template.

    With --from, the optimizer's model drafts tasks from a document. Each draft is marked "reviewed": false. Training
    refuses it until you have read it and changed that to true.

    With bench:NAME it writes the starting skill of a benchmark, and a config with the settings and split sizes of the
    published runs; `skilltune data list` names the benchmarks.

    \b
    Examples:
      skilltune init skills/invoice-totals
      skilltune init . --name dates --description "Writes dates. Use for every date." --score exact --yes
      skilltune init . --target claude-code/claude-opus-5 --optimizer anthropic/claude-opus-5
      skilltune init . --from handbook.md --optimizer anthropic/claude-opus-5
      skilltune init bench:gsm8k --target openai/gpt-5.5 --optimizer anthropic/claude-opus-5
    """
    from skilltune.authoring.benchmark import fetch_command, folder_of, scaffold_benchmark
    from skilltune.authoring.scaffold import ANSWER_ONLY, Plan, describe_evals, draft_with, propose, scaffold
    from skilltune.benchmarks import is_benchmark
    from skilltune.config import EVALS

    with boundary():
        given = {"name": name, "description": description, "task": task, "score": score, "target": target}
        given |= {"optimizer": optimizer}
        plan: dict[str, str] = {}
        spec, folder = (source, into or folder_of(source)) if is_benchmark(source) else ("", Path(source))
        if not spec and (into is not None or data is not None):
            raise UsageError(f"a second folder and --data belong to a benchmark, and {source!r} is none: bench:NAME")
        questions = propose(folder, drafting=document is not None)
        if spec:
            if document is not None:
                raise UsageError(f"--from drafts tasks, and {spec} has its own: leave one of the two out")
            if answered := [f"--{key}" for key in ("name", "description", "task", "score") if given[key] is not None]:
                raise UsageError(f"{spec} has its own skill and scorer: leave out {', '.join(answered)}")
            questions = {key: questions[key] for key in ("target", "optimizer")}
        if answered := [f"--{key}" for key, value in given.items() if value is not None and key not in questions]:
            raise UsageError(
                f"{folder} already has a SKILL.md, which is kept as it is: leave out {', '.join(answered)}, or delete "
                "the file to start from the template"
            )
        for key, (question, default) in questions.items():
            value = given[key]
            if value is None and not yes:
                if not sys.stdin.isatty():
                    raise UsageError(f"no terminal to ask: add --{key}, or --yes for the default ({default})")
                value = typer.prompt(question, default=default)
            plan[key] = default if value is None else value
        if spec:
            models = {"target": plan["target"], "optimizer": plan["optimizer"], "key_env": _declared(key_env)}
            for path in scaffold_benchmark(spec, folder, data=data, force=force, **models):
                say(f"wrote {path}")
            command = "" if data else fetch_command(spec)
            say(f"next: {command}{', then ' if command else ''}skilltune check {folder}")
            return
        kept = {"name": folder.resolve().name, "description": "", "task": ANSWER_ONLY}  # for a SKILL.md that exists
        chosen = Plan(**(kept | plan), key_env=_declared(key_env))
        evals = describe_evals(folder / EVALS) if document is None and (folder / EVALS).is_file() else ""
        drafts = interrupts.run(draft_with(chosen, document)) if document is not None else []
        for path in scaffold(folder, chosen, drafts=drafts, force=force):
            say(f"wrote {path}")
        if "name" not in questions:
            say(f"kept {folder / 'SKILL.md'}")
        todo = f"write your own tasks into {folder / chosen.samples(folder)}, then "
        if drafts:
            todo = f'read the {len(drafts)} drafts in {folder / "samples.jsonl"}, set "reviewed" to true in each, then '
        elif evals:
            say(f"kept {folder / EVALS}: {evals}")
            todo = ""
        say(f"next: {todo}skilltune check {folder}")
