_base_ = 'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py'

model = dict(
    type='mmext.auto_channels',
    model='mmpretrain.ImageClassifier',
    backbone=dict(
        _delete_=True,
        type='mmext.EMOv2',
        arch='5M',
        out_indices=(3,),
        out_norm=dict(type='mmext.LayerNorm2d', eps=1e-6),
        drop_path_rate=0.05,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels='auto'),
)
