"""`hitrouter destinations`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli import count_text


@click.command("destinations", short_help="List the destinations, or describe one.")
@click.argument("names", nargs=-1, metavar="[NAME | new NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], as_json: bool) -> None:
    """List the destinations. With NAME, show its settings, options, limits and an example.

    In a clone of the repository, `new NAME` writes the files of a new destination for you to complete.

    Example: hitrouter destinations "Google Analytics"
    """
    from pipeline.config.problems import nearest
    from pipeline.destination import BigQuery, Http
    from pipeline.development.new_destination import slug_of
    from pipeline.registry import declared_destinations

    if names[:1] == ("new",) and len(names) > 1:
        from pipeline.development.new_destination import new_destination

        for file in new_destination(" ".join(names[1:]), Path.cwd()):
            click.echo(f"complete {file}; see docs/how-to/write-a-destination.md")
        return
    name = " ".join(names)
    known = declared_destinations()
    if not name:
        if as_json:
            click.echo(json.dumps({kind.name: kind.summary for kind in known.values()}))
        else:
            for kind in sorted(known.values(), key=lambda kind: kind.name):
                click.echo(f"{kind.name:22} {kind.summary}")
        return
    by_lower = {other.lower(): kind for kind in known.values() for other in (kind.name, *kind.aliases)}
    found = by_lower.get(name.lower())
    if found is None:
        raise click.BadParameter(f"unknown destination{nearest(name, known)}", param_hint="NAME")
    if as_json:
        shown = {"settings": found.settings.model_json_schema(), "options": found.options.model_json_schema()}
        click.echo(
            json.dumps({"name": found.name, "aliases": found.aliases, "documentation": found.documentation, **shown})
        )
        return
    click.echo(f"{found.name}: {found.summary}")
    if found.aliases:
        click.echo(f"aliases in `integrations`: {', '.join(found.aliases)}")
    if found.documentation:
        click.echo(found.documentation)
    click.echo(f"Delivery: {found.delivery_guarantee}")
    if isinstance(found.sink, Http | BigQuery):
        limits = found.sink.limits
        pace = f", rate {limits.per_second:g}/s" if limits.per_second else ""
        click.echo(f"Requests: at most {count_text(limits.events, 'event')} and {limits.request_bytes} bytes{pace}")
    _show("settings", found.settings)
    _show("options of a hit", found.options)
    click.echo("\nconnections:")
    click.echo(f"  my-{slug_of(found.name).replace('_', '-')}:")
    click.echo(f"    destination: {found.name}")
    required = [key for key, field in found.settings.model_fields.items() if field.is_required()]
    if required:
        click.echo("    settings:")
        for key in required:
            # The prefix avoids ${PATH}, which is set in every shell.
            click.echo(f'      {key}: "${{MY_{key.upper()}}}"')
    _show_example(found.name)


def _show_example(name: str) -> None:
    """Print the first of the destination's examples, which the tests run."""
    import yaml

    from pipeline.development.new_destination import slug_of
    from pipeline.operations.packaged_files import destination_examples_folder

    file = destination_examples_folder() / f"{slug_of(name)}.yaml"
    if not file.exists():  # Files and Kafka send no request to show
        return
    case = yaml.safe_load(file.read_text())["examples"][0]
    name = case.pop("name")
    click.echo(f"\nexample ({name}; more in {file}):")
    click.echo(yaml.safe_dump(case, sort_keys=False, allow_unicode=True, width=120), nl=False)


def _show(title: str, model: Any) -> None:
    if not model.model_fields:
        return
    click.echo(f"\n{title}:")
    width = max(map(len, model.model_fields))
    for key, field in model.model_fields.items():
        if field.is_required():
            needed = "required"
        else:
            needed = "optional" if field.default is None else f"default {field.default!r}"
        click.echo(f"  {key:{width}} {field.description or ''} ({needed})")
