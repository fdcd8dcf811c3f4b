"""Networks: backbones, ways of sharing them between tasks, heads, and pretrained weights."""
