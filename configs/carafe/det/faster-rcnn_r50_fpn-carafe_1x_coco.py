_base_ = 'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py'

# The weights and their names stay those of mmdet, so its published checkpoint loads.
rules = [dict(layer='CARAFEPack', to=dict(type='mmext.CARAFE'))]
model = dict(neck=dict(type='mmext.swap_layers', model='FPN_CARAFE', rules=rules))
