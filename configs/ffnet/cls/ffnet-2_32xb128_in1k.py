_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

# The authors train at 256 x 256, and normalize the last map before its mean.
model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(
        _delete_=True, type='mmext.FFNet', arch='2', out_indices=(3,), out_norm=dict(type='BN'), drop_path_rate=0.15
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels='auto'),
)
