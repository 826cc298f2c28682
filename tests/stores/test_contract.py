"""Every store passes the contract of `deltahub.testing`, and says where it is."""

from deltahub.testing import StoreContract


class TestStore(StoreContract):
    pass


def test_a_store_says_where_it_is(store, tmp_path):
    assert store.url in (str(tmp_path / "store"), "memory") or store.url.startswith(
        ("s3://deltas/test/", "gs://deltas/test/", "az://deltas/test/")
    )
