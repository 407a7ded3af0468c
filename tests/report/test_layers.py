"""Where layers stand in the grid of errors, and which are shown over the steps."""

from viditq.diagnostics import LayerDiagnostics
from viditq.report.layers import grid, load_layers, most_uneven


def layer(role: str, before: float = 10.0, steps: int = 2) -> LayerDiagnostics:
    spread = {"p50": 1.0, "p99": 2.0, "max": 3.0}
    return LayerDiagnostics.model_validate(
        {
            "role": role,
            "weight_format": "int8",
            "activation_format": "int8",
            "in_features": 8,
            "out_features": 8,
            "size_bytes": 64,
            "float_size_bytes": 128,
            "sqnr_db": 30.0,
            "incoherence_before": before,
            "incoherence_after": 5.0,
            "steps": [{"step": i, "before": spread, "after": spread} for i in range(steps)],
        }
    )


def test_grid():
    found = grid(
        {
            "transformer_blocks.0.attn1.to_q": layer("self_attn.qkv"),
            "transformer_blocks.0.attn1.to_k": layer("self_attn.qkv"),
            "transformer_blocks.0.ff.net.2": layer("ffn.down"),
            "transformer_blocks.1.ff.net.2": layer("ffn.down"),
            "transformer_blocks.11.attn1.to_out.0": layer("self_attn.out"),
        }
    )
    assert found.rows == ("attn1.to_q", "attn1.to_k", "ffn.down", "self_attn.out")
    assert found.columns == 12
    assert found.cells[2, 1][0] == "transformer_blocks.1.ff.net.2"
    assert found.cells[3, 11][0] == "transformer_blocks.11.attn1.to_out.0"


def test_two_lists_of_blocks_are_told_apart():
    found = grid(
        {
            "transformer_blocks.0.ff.net.2": layer("ffn.down"),
            "temporal_transformer_blocks.0.ff.net.2": layer("ffn.down"),
            "temporal_transformer_blocks.0.attn1.to_q": layer("temporal_attn.qkv"),
        }
    )
    assert found.rows == ("ffn.down", "temporal ffn.down", "temporal_attn.qkv")


def test_most_uneven_of_each_role():
    layers = {
        "a": layer("ffn.up", 9),
        "b": layer("ffn.up", 20),
        "c": layer("ffn.down", 50, steps=1),  # nothing to draw over the steps
        "d": layer("self_attn.out", 30),
        "e": layer("cross_attn.q", 5),
    }
    assert [name for name, _ in most_uneven(layers, 2)] == ["d", "b"]


def test_no_file_no_layers(tmp_path):
    assert load_layers(tmp_path / "none.json") == {}
