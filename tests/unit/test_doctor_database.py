"""What doctor says of a database file that the server cannot use."""

from pathlib import Path

from sandkeep.app.doctor import wrong_file


def test_its_own_file_is_well_and_a_folder_or_a_strangers_file_has_a_remedy(tmp_path: Path) -> None:
    database = tmp_path / "sandkeep.db"
    database.write_bytes(b"")
    assert wrong_file(database, "root") is None
    strange = wrong_file(database, "daemon")
    assert strange and strange.level == "missing"
    assert strange.remedy == f"chown daemon: {database}*"
    database.unlink()
    database.mkdir()
    folder = wrong_file(database, "root")
    assert folder and "is not a file" in folder.what
    assert f"mv {database} " in folder.remedy


def test_a_missing_user_is_told_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"")
    assert wrong_file(tmp_path / "db", "nobody-of-that-name") is None
