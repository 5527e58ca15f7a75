# Ten of the twelve attention layers start as convolutions; the class token attends by content alone.
_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

model = dict(
    backbone=dict(
        type='mmext.swap_layers',
        model='VisionTransformer',
        rules=[dict(layer='MultiheadAttention', first=10, to=dict(type='mmext.GPSA', num_extra_tokens=1))],
    )
)
