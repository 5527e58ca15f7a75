# Large is this network at 768 pixels. Outputs are taken where the authors' files take them.
_base_ = 'leyolo-s_4xb32-500e_coco.py'

model = dict(
    backbone=dict(arch='medium'),
    neck=dict(deep=True, official_taps=True),
    bbox_head=dict(in_channels=[48, 88, 256]),
)
