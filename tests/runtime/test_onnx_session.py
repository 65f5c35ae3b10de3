"""How sessions of ONNX Runtime are made."""

from crossmost.runtime.onnx_session import create_session


def test_threads_do_not_spin_between_calls(bundle):
    """A robot that classifies ten times a second would lose half its processor to waiting."""
    options = create_session(bundle("fp32") / "encoder.onnx").get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
