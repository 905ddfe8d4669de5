"""Numbers stored beside the weights: what comes back, and what a damaged file says."""

from __future__ import annotations

import pytest

from taosr1.serving.deployed import chosen_temperature, store_beta, store_temperature, stored_beta, stored_temperature


def test_what_is_stored_comes_back_bit_for_bit(tmp_path, capsys):
    folder = str(tmp_path)
    assert stored_temperature(folder) is None and stored_beta(folder) is None
    assert chosen_temperature(folder, "stored") == chosen_temperature(folder, "off") == 1
    assert capsys.readouterr().err == ""
    path = store_temperature(folder, 1 / 3, dev="rows", rows=7)
    store_beta(folder, 0.1 + 0.2, 1 / 3)
    assert path == tmp_path / "calibration.json" and stored_temperature(folder) == 1 / 3
    assert stored_beta(folder, 1 / 3) == 0.1 + 0.2
    assert chosen_temperature(folder, "stored") == 1 / 3 and "temperature 0.3333" in capsys.readouterr().err
    assert chosen_temperature(folder, "off") == 1 and capsys.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calibration.json",
        "tiering.json",
    ]  # nothing half-written


def test_a_beta_stored_without_a_temperature_is_of_unscaled_probabilities(tmp_path):
    (tmp_path / "tiering.json").write_text('{"beta": 0.4}')
    assert stored_beta(str(tmp_path)) == 0.4
    with pytest.raises(
        ValueError, match="tiering.json: beta was fitted on probabilities at temperature 1.0, these are at 2.0"
    ):
        stored_beta(str(tmp_path), 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"temperature": -1}', "temperature is -1, expected a finite number above 0"),
        ('{"temperature": 0}', "temperature is 0, expected"),
        ('{"temperature": NaN}', "temperature is nan, expected"),
        ('{"temperature": Infinity}', "temperature is inf, expected"),
        ('{"temperature": "2"}', "temperature is '2', expected"),
        ('{"temperature": true}', "temperature is True, expected"),
        ('{"T": 2}', "temperature is None, expected"),
        ("{", "is not valid JSON"),
        ("[2]", "holds a JSON list, expected an object"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_a_malformed_calibration_is_one_error_that_names_the_file(text, message, tmp_path):
    (tmp_path / "calibration.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"calibration.json:? {message}"):
        stored_temperature(str(tmp_path))
    assert chosen_temperature(str(tmp_path), "off") == 1  # which reads no file


def test_what_is_no_folder_cannot_store():
    for store, flag in ((store_temperature, "--fit-temperature"), (store_beta, "--save-beta")):
        with pytest.raises(ValueError, match=f"{flag}: nobody/model is not a local folder; give --model FOLDER"):
            store("nobody/model", 0.5)
