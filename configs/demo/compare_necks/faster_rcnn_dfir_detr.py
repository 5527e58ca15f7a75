# DFIR-DETR's pyramid in the place of the stock one.
_base_ = 'faster_rcnn_fpn.py'

model = dict(neck=dict(type='mmext.DFPN', feedforward_channels=128))
