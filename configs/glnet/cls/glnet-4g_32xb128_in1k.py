_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The authors train with batches of 2,048, half of the rate, and gradients of norm 5 at most.
model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(
        _delete_=True, type='mmext.GLNet', arch='4G', out_indices=(3,), out_norm=dict(type='BN'), drop_path_rate=0.15
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels='auto'),
)
