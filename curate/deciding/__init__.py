"""What another decision would do, and what two decisions differ in: answers from columns that are measured already."""
