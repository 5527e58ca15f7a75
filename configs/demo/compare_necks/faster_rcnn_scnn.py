_base_ = 'faster_rcnn_fpn.py'

# On the two small maps: with this head, messages through all sixteen rows of the largest one grow without bound.
model = dict(
    neck=[_base_.model.neck, dict(type='mmext.SCNN', in_channels=[64, 64, 64], out_channels=64, levels=(1, 2))]
)
