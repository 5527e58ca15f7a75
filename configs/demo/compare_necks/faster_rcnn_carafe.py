# mmdet's FPN_CARAFE. Its own operator needs a GPU, so that of the pack stands in its place.
_base_ = 'faster_rcnn_fpn.py'

rules = [dict(layer='CARAFEPack', to=dict(type='mmext.CARAFE'))]
model = dict(neck=dict(type='mmext.swap_layers', model='FPN_CARAFE', rules=rules))
