_base_ = 'mmpretrain::csra/resnet101-csra_1xb16_voc07-448px.py'

# The backbone learns ten times more slowly, as the authors' does.
model = dict(head=dict(_delete_=True, type='mmext.MultiLabelADDGCNHead', num_classes=20, in_channels=2048))
