from __future__ import annotations

import dataclasses
import math

import pytest
import result_store
import tables
from analysis import Summary
from settings import DEFAULT_CONFIG, Run, SettingsError, load_study, settings_hash

from .conftest import result_row

PAGE = f"# Results\n\nbefore\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n"


@pytest.fixture
def study(config_file):
    study = load_study(config_file)
    for arm, level in [("clean", 0.86), ("noisy", 0.7), ("trusted_only", 0.74), ("mixed", 0.75), ("metadcseg", 0.8)]:
        for seed in (0, 1):
            result_store.store_run(study.results, [result_row(arm, seed, level + seed / 100)])
    for seed in (0, 1):
        rows = [result_row("oracle_drop", seed, 0.8), result_row("clean", seed, 0.86, cell="toy_20")]
        for row in rows:
            result_store.store_run(study.results, [row])
    return study


def test_with_sd():
    assert tables.with_sd(Summary(0.5, 0.012, 3)) == "0.500 ± 0.012"
    assert tables.with_sd(Summary(0.5, math.nan, 1)) == "0.500"
    assert tables.with_sd(Summary(math.nan, math.nan, 0)) == "-"


def test_arms_are_rows_in_their_own_order(study):
    text = tables.report(study)
    table = text[text.index("### toy_60") :]
    arms = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:7]
    assert arms == ["clean", "noisy", "trusted_only", "mixed", "oracle_drop", "metadcseg"]
    assert "| noisy | 2 | 0.705 ± 0.007 |" in table


def test_overview_has_a_verdict_per_cell(study):
    text = tables.report(study)
    assert "2 cells with results, 1 complete, 1 deciding. Criterion met in 1 of 1" in text
    line = next(line for line in text.splitlines() if line.startswith("| toy_60 |"))
    assert "| deciding |" in line and "| yes |" in line and "(mixed)" in line and "(oracle_drop)" in line
    line = next(line for line in text.splitlines() if line.startswith("| toy_20 |"))
    assert "incomplete" in line


def test_missed_structures_are_counted_where_there_are_any(study):
    assert "missed" not in tables.report(study)
    result_store.store_run(study.results, [result_row("noisy", 1, 0.71, missed=2)])
    text = tables.report(study)
    assert "| noisy | 2 | 0.705 ± 0.007 | 2/6 |" in text and "| clean | 2 | 0.865 ± 0.007 | 0/6 |" in text
    assert text.count("| missed |") == 1, "not in the table of toy_20"


def test_page_keeps_what_stands_outside_the_markers(study, tmp_path):
    page = tmp_path / "results.md"
    page.write_text(PAGE, encoding="utf-8")
    config = str(tmp_path / "config.yaml")
    assert tables.main(["--config", config, "--page", str(page), "--no-figures"]) == 0
    first = page.read_text(encoding="utf-8")
    assert "before" in first and "after" in first and "old" not in first and "toy_60" in first
    tables.main(["--config", config, "--page", str(page), "--no-figures"])
    assert page.read_text(encoding="utf-8") == first, "a second call changes nothing"


@pytest.mark.parametrize("page", ["nothing", PAGE + tables.BEGIN, f"{tables.END} {tables.BEGIN}"])
def test_page_without_one_pair_of_markers(page):
    with pytest.raises(SettingsError, match="once each"):
        tables.replace_between_markers(page, "new")


def test_results_of_an_unknown_cell(study):
    result_store.store_run(study.results, [result_row("noisy", 0, 0.5, cell="other")])
    with pytest.raises(SettingsError, match="does not have: other; .* 'results:'"):
        tables.report(study)


def test_rows_of_trainings_of_another_length_are_left_out(study, config_file, capsys):
    before = tables.report(study)
    result_store.store_run(study.results, [result_row("noisy", 7, 0.1, steps=5000)])
    assert tables.report(study) == before
    assert tables.main(["--config", str(config_file), "--print"]) == 0
    assert "left out 1 rows" in capsys.readouterr().err


def test_rows_of_other_settings_are_left_out(study, config_file, capsys):
    run = Run("toy_60", 0, "noisy", 7)
    row = result_row("noisy", 7, 0.1, settings=settings_hash(study, run))
    result_store.store_run(study.results, [row])
    assert "| noisy | 3 |" in tables.report(study)
    text = config_file.read_text(encoding="utf-8")
    config_file.write_text(text.replace("noise: [erosion]", "noise: [dilation]"), encoding="utf-8")
    assert "| noisy | 2 |" in tables.report(load_study(config_file)), "older rows have no settings and are kept"
    assert tables.main(["--config", str(config_file), "--print"]) == 0
    assert "left out 1 rows of other settings" in capsys.readouterr().err


def test_rows_of_other_seeds_and_arms_than_the_file_s_are_kept(study):
    result_store.store_run(study.results, [result_row("noisy", 7, 0.7)])
    result_store.store_run(study.results, [result_row("no_dcd", 0, 0.7)])
    text = tables.report(study)
    assert "| noisy | 3 |" in text and "| no_dcd | 1 |" in text


def test_no_results(config_file):
    assert tables.report(load_study(config_file)) == "No results yet."


def test_missing_page(config_file, capsys):
    assert tables.main(["--config", str(config_file), "--page", "absent.md"]) == 2
    assert capsys.readouterr().err.startswith("error: There is no page")


def test_only_the_project_s_own_study_writes_the_project_s_page(study, config_file, tmp_path):
    own = load_study(DEFAULT_CONFIG)
    assert tables.default_page(own, DEFAULT_CONFIG) == tables.PROJECT_PAGE
    trials = dataclasses.replace(own, results=tmp_path / "trials")
    assert tables.default_page(trials, DEFAULT_CONFIG) == tmp_path / "trials" / "results.md"
    assert tables.default_page(study, config_file) == study.results / "results.md"


def test_the_default_page_is_made_and_kept(study, config_file):
    page = study.results / "results.md"
    assert tables.main(["--config", str(config_file), "--no-figures"]) == 0
    assert "### toy_60" in page.read_text(encoding="utf-8")
    page.write_text(PAGE, encoding="utf-8")
    assert tables.main(["--config", str(config_file), "--no-figures"]) == 0
    assert "before" in page.read_text(encoding="utf-8")


def test_figures(study, tmp_path):
    from figures import draw_figures, noise_series

    written = draw_figures(study, tmp_path / "docs" / "figures")
    assert written[0] == "figures/noise_study_dice_per_arm.png" and len(written) == 2
    assert all((tmp_path / "docs" / file).stat().st_size > 1000 for file in written)
    series = noise_series(study, {"toy_60": None, "toy_20": None})
    assert [[cell.case_fraction for cell in cells] for cells in series.values()] == [[0.2, 0.6]]


@pytest.mark.parametrize("change", [{"label_dice": 0.7}, {"noise_seed": 1}])
def test_cells_of_different_noise_are_no_series(study, change):
    from figures import noise_series

    changed = dataclasses.replace(study.cell("toy_20"), **change)
    study = dataclasses.replace(study, cells=study.cells | {"toy_20": changed})
    assert noise_series(study, {"toy_60": None, "toy_20": None}) == {}
