"""From runs to a report."""

from ..config.settle import Settings
from .contents import Report, numbers_of
from .notes import notes_of
from .problems import Runs
from .result_table import result_table
from .sentences import sentences
from .tables import comparison_tables, improvement_tables, ranking_tables, time_tables


def report(runs: Runs, settings: Settings) -> Report:
    """All that the runs say, in numbers, tables, sentences and notes."""
    done = numbers_of(runs, settings)
    done.notes = ([settings["note"]] if settings["note"] else []) + notes_of(done) + runs.notes
    done.tables = [
        *(result_table(done, problem) for problem in runs.problems),
        *comparison_tables(done), *ranking_tables(done), *improvement_tables(done), *time_tables(done),
    ]  # fmt: skip
    against = settings["against"]
    nothing = "there is one method only" if against == "all" else f"there is no run of {against} to compare with"
    done.sentences = sentences(done.comparisons, settings, done.diverged_values) or [f"Nothing to compare: {nothing}."]
    return done
