"""Files that are whole or not there."""
import os

import pytest
import torch

from apt_dense.core.files import check_folder, check_target, write_atomically


def test_atomic_writing(tmp_path):
    target = tmp_path / 'new/file.pth'
    write_atomically(target, lambda file: torch.save({'a': torch.ones(3)}, file))
    assert torch.equal(torch.load(target)['a'], torch.ones(3))

    def full_disk(file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space left'):
        write_atomically(target, full_disk)
    assert torch.equal(torch.load(target)['a'], torch.ones(3))
    assert [path.name for path in target.parent.iterdir()] == ['file.pth']


def test_text_bytes_and_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / 'a.txt', 'd\u00e4')
    finally:
        os.umask(before)
    write_atomically(tmp_path / 'a.bin', b'x' * 10)
    assert (tmp_path / 'a.txt').read_bytes() == b'd\xc3\xa4' and (tmp_path / 'a.bin').stat().st_size == 10
    assert (tmp_path / 'a.txt').stat().st_mode & 0o777 == 0o640


def test_an_interruption_leaves_what_was_there(tmp_path):
    write_atomically(tmp_path / 'a.txt', 'old')

    def interrupted(file):
        file.write(b'new')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / 'a.txt', interrupted)
    assert [path.name for path in tmp_path.iterdir()] == ['a.txt'] and (tmp_path / 'a.txt').read_text() == 'old'


def test_a_folder_is_checked_and_left_as_it_is(tmp_path):
    check_folder(tmp_path / 'new/below')
    check_target(tmp_path / 'other/file.json')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'file').write_text('content')
    for folder in (tmp_path / 'file', tmp_path / 'file/below', '/proc/no'):
        with pytest.raises(ValueError, match=rf'^--out {folder} takes no files: .*Choose another folder'):
            check_folder(folder, '--out')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(ValueError, match='folder is a folder: give the name of a file'):
        check_target(tmp_path / 'folder')
    check_target(tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == 'content'
