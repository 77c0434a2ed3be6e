import re
import warnings
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from report_samples import ENDINGS, failed, passed

from compressor.report.pictures import ablation_picture, search_picture, verdict_picture
from compressor.report.record import Ablation, validate


def pictures(record):
    checked = validate(record)
    drawn = [verdict_picture(checked.verdict), search_picture(checked), ablation_picture(checked.ablation)]
    return [picture for picture in drawn if picture]


@pytest.mark.parametrize("ending", ["passed", "failed", "undecided"])
def test_pictures_are_whole_themed_and_alone(ending):
    drawn = pictures(ENDINGS[ending]())
    assert len(drawn) == 3
    seen = []
    for picture in drawn:
        root = ElementTree.fromstring(picture)
        assert root.get("aria-label")
        assert root.get("width") is None
        assert "<metadata" not in picture
        assert not re.search(r"#0[1-7]0[1-7]0[1-7]", picture)
        assert "var(--ink)" in picture
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        refs = re.findall(r'(?:href="|url\()#([^")]+)', picture)
        assert set(refs) <= set(ids)
        seen += ids
    assert len(seen) == len(set(seen))


def test_the_same_record_gives_the_same_bytes():
    assert pictures(passed()) == pictures(passed())


def test_global_settings_stay_and_do_not_matter():
    before = dict(matplotlib.rcParams)
    reference = pictures(passed())
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert pictures(passed()) == reference


def test_captions_have_the_numbers():
    verdict, search, ablation = pictures(failed())
    assert "Difference -2.31 points, interval -2.71 to -1.91, allowed -1.00: failed" in verdict
    assert "5 candidates on tune data, 4 judged" in search
    assert "40 removed units, rank correlation 0.93" in ablation


def test_the_curve_marks_selected_allowed_and_far_points():
    search = search_picture(validate(passed()))
    assert search is not None
    for words in ("selected", "allowed drop", "tune, further down", "judged: failed", "parameters kept, %"):
        assert words in search
    near = passed()
    near["search"] = near["search"][:3]
    assert "further down" not in (search_picture(validate(near)) or "")


def test_the_curve_follows_the_measure_that_was_asked_for():
    assert "MACs kept, %" in (search_picture(validate(passed(options={"keep": "macs=0.5"}))) or "")


def test_nothing_to_draw():
    assert search_picture(validate(passed(search=[]))) is None
    assert search_picture(validate(passed(search=[{"params": 0.5, "macs": 0.5}]))) is None
    assert ablation_picture(None) is None
    assert ablation_picture(Ablation(rank_correlation=0.5)) is None


@pytest.mark.parametrize("least", [1e-6, 0.0, -1e-3])
def test_losses_of_any_sign_have_a_scale(least):
    tried = [{"predicted": 1e-5 * i, "measured": 2e-5 * i} for i in range(1, 9)]
    ablation = Ablation.model_validate({"tried": [*tried, {"predicted": 1e-5, "measured": least}], "below": 1e-5})
    picture = ablation_picture(ablation)
    assert picture is not None
    assert picture.count("<use") >= len(tried)


@pytest.mark.parametrize("judged", [True, False])
def test_single_points_and_no_losses_can_be_drawn(judged):
    record = passed()
    verdict = record["search"][0]["judged"] | {"difference": 0.0, "interval": [0.0, 0.0], "allowed": 0.0}
    one = {"params": 0.5, "macs": 0.5, "judged": verdict if judged else None, "tune": {"agreement": 100.0}}
    record |= {
        "search": [one],
        "verdict": verdict,
        "ablation": {"tried": [{"predicted": 0.0, "measured": 0.0}]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(pictures(record)) == 3
